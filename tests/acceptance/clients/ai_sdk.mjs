// What the AI SDK makes of the scripted answers, as one line of JSON. test_clients.py says which answers those are.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL: baseURL, API_KEY: apiKey } = process.env;
const gasket = createOpenAICompatible({ name: "gasket", baseURL, apiKey });
const model = gasket("model-a");
const prompt = "hello";

async function failure(model) {
  try {
    await generateText({ model, prompt, maxRetries: 0 });
  } catch (error) {
    return [error.statusCode, error.data.error.code];
  }
}

const told = {};
const chat = await generateText({ model, prompt, maxRetries: 0 });
told.chat = [chat.text, chat.usage.totalTokens];

told.stream = [];
for await (const word of streamText({ model, prompt, maxRetries: 0 }).textStream) told.stream.push(word);

const tools = { weather: tool({ inputSchema: z.object({ city: z.string() }) }) };
const [call] = await streamText({ model, prompt, tools, maxRetries: 0 }).toolCalls;
told.tool = [call.toolName, call.input];

told.embedding = (await embed({ model: gasket.embeddingModel("model-a"), value: prompt, maxRetries: 0 })).embedding;

const stranger = createOpenAICompatible({ name: "gasket", baseURL, apiKey: "gsk_" + "0".repeat(48) });
told.wrong_key = await failure(stranger("model-a"));
told.wrong_model = await failure(gasket("model-z"));
told.limited = await failure(model);

told.retried = (await generateText({ model, prompt, maxRetries: 2 })).text;

const leaving = new AbortController();
for await (const word of streamText({ model, prompt, maxRetries: 0, abortSignal: leaving.signal }).textStream) {
  told.cancelled_after = word;
  leaving.abort();
}
console.log(JSON.stringify(told));
setInterval(() => {}, 60_000); // stays, so that it is not its end which ends the last stream
