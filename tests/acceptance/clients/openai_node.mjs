// What openai-node makes of the scripted answers, as one line of JSON. test_clients.py says which answers those are.
import OpenAI from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const weather = { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } };

async function failure(using, model) {
  try {
    await using.chat.completions.create({ model, messages });
  } catch (error) {
    return [error.status, error.code];
  }
}

const told = {};
const chat = await client.chat.completions.create({ model: "model-a", messages });
told.chat = [chat.choices[0].message.content, chat.usage.total_tokens];

told.stream = [];
for await (const event of await client.chat.completions.create({ model: "model-a", messages, stream: true })) {
  const word = event.choices[0]?.delta.content;
  if (word) told.stream.push(word);
}

const call = { name: "", input: "" };
const tools = [{ type: "function", function: weather }];
for await (const event of await client.chat.completions.create({ model: "model-a", messages, tools, stream: true })) {
  const piece = event.choices[0]?.delta.tool_calls?.[0].function;
  call.name += piece?.name ?? "";
  call.input += piece?.arguments ?? "";
}
told.tool = [call.name, JSON.parse(call.input)];

const vectors = await client.embeddings.create({ model: "model-a", input: "hello", encoding_format: "float" });
told.embedding = vectors.data[0].embedding;

told.wrong_key = await failure(new OpenAI({ baseURL, apiKey: "gsk_" + "0".repeat(48), maxRetries: 0 }), "model-a");
told.wrong_model = await failure(client, "model-z");
told.limited = await failure(client, "model-a");

const patient = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
told.retried = (await patient.chat.completions.create({ model: "model-a", messages })).choices[0].message.content;

const endless = await client.chat.completions.create({ model: "model-a", messages, stream: true });
for await (const event of endless) {
  told.cancelled_after = event.choices[0].delta.content;
  break; // which cancels the request
}
console.log(JSON.stringify(told));
setInterval(() => {}, 60_000); // stays, so that it is not its end which ends the last stream
