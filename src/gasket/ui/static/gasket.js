// Everything works without this script. It copies, submits the form of a link that signs in, keeps relative times true,
// shows the current page's link where `nav` is too narrow for all of them, and loads a page anew.
"use strict";

const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"]];

function ago(moment) {
  const seconds = (Date.now() - moment) / 1000;
  const distance = Math.abs(seconds);
  if (distance < 5) return "just now";
  let words = `${Math.round(distance)} seconds`;
  for (const [size, unit] of UNITS) {
    if (distance >= size) {
      const count = Math.floor(distance / size);
      words = `${count} ${unit}${count > 1 ? "s" : ""}`;
      break;
    }
  }
  return seconds > 0 ? `${words} ago` : `in ${words}`;
}

function showTimes() {
  for (const element of document.querySelectorAll("time[data-ago]")) {
    element.textContent = ago(Date.parse(element.dateTime));
  }
}

function showButtons() {
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
}

async function copy(button) {
  await navigator.clipboard.writeText(button.parentElement.querySelector("[data-text]").textContent);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

async function loadAnew(main) {
  if (document.hidden || main.contains(document.activeElement) || main.querySelector("details[open]")) return;
  const response = await fetch(location.href, { headers: { accept: "text/html" } }).catch(() => null);
  if (!response) return;
  const found = new DOMParser().parseFromString(await response.text(), "text/html");
  const content = found.querySelector("main");
  // Another page: the session has ended, or what was waited for is there.
  if (response.redirected || !content || found.title !== document.title) {
    location.reload();
    return;
  }
  main.replaceChildren(...content.childNodes);
  showButtons();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button);
});

showTimes();
showButtons();
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
document.querySelector("form[data-submit]")?.requestSubmit();
setInterval(showTimes, 10000);
const main = document.querySelector("main[data-refresh]");
if (main) setInterval(() => loadAnew(main), 1000 * Number(main.dataset.refresh));
