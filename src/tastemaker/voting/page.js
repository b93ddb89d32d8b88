"use strict";
const get = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const { token } = JSON.parse(get("data").textContent);
const KEYS = {
  ArrowLeft: "left", a: "left", ArrowRight: "right", d: "right", ArrowDown: "tie", t: "tie", u: "undo", Backspace: "undo",
};
const MARKED = 220; // milliseconds that a choice is seen
const TINY = 128; // pixels; pictures up to here are enlarged pixel by pixel
const TALL = 0.7; // width by height; below it pictures stand side by side on a phone, too
const AHEAD = 2; // pairs whose pictures are fetched before they are wanted

let pairs = [], votes = [], shown = null, since = 0;
let free = false; // whether a vote is taken now: both pictures are seen, and no other vote is under way
let pending = null; // a vote that the server does not have yet
const passed = new Set(); // pairs with a picture that cannot be shown
const fetched = new Map();

// ---- the server

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body && {
      method: "POST", body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-Tastemaker-Token": token },
    });
  } catch {
    throw { gone: true, text: "The server does not answer. Is “tastemaker vote” still running?" };
  }
  if (answer.ok) return answer.json();
  throw { status: answer.status, text: (await answer.text()).trim() };
}

async function load() {
  try {
    ({ pairs, votes } = await ask("state"));
  } catch (error) {
    return complain(error.text, "Try again", load);
  }
  hush();
  pending = null;
  return show();
}

// ---- what is seen

function complain(text, label, action) {
  get("said").textContent = text;
  get("again").textContent = label;
  get("again").onclick = () => { hush(); action(); };
  get("alert").hidden = false;
  get("again").focus({ preventScroll: true });
}

function hush() {
  get("alert").hidden = true;
}

function open() {
  const voted = new Set(votes.map((one) => one.pair));
  return pairs.filter((one) => !voted.has(one.number) && !passed.has(one.number));
}

function image(number, text) {
  const made = new Image();
  Object.assign(made, { alt: text, draggable: false, src: `picture/${number}` });
  return made.decode().then(() => made, async () => {
    await ask("state"); // told apart: a server that is gone, and a picture that is broken
    throw { text: `The ${text.split(" ")[0].toLowerCase()} picture cannot be shown: its file is damaged or gone.` };
  });
}

function pictures(pair) {
  if (!fetched.has(pair.number)) {
    const both = Promise.all([image(pair.left, `Left picture: ${pair.prompt}`), image(pair.right, `Right picture: ${pair.prompt}`)]);
    both.catch(() => fetched.delete(pair.number)); // it may work the next time
    fetched.set(pair.number, both);
  }
  return fetched.get(pair.number);
}

function mark(vote) {
  const chosen = (one) => vote === "tie" ? one.dataset.vote === "tie" || one.matches(".card") : one.dataset.vote === vote;
  document.body.classList.toggle("tied", vote === "tie");
  for (const one of all("[data-vote]")) {
    one.classList.toggle("chosen", vote !== null && chosen(one));
    one.classList.toggle("other", vote !== null && !chosen(one));
  }
}

async function show() {
  const left = open(), pair = left[0] ?? null, was = shown;
  shown = pair;
  free = false;
  mark(null);
  get("bar").max = Math.max(1, pairs.length);
  get("bar").value = votes.length;
  get("undo").disabled = votes.length === 0;
  get("ballot").hidden = pair === null;
  get("end").hidden = pair !== null;
  if (pair === null) return finish();
  get("place").textContent = `${pairs.length - left.length + 1} of ${pairs.length}`;
  document.title = `${get("place").textContent} · Vote · Tastemaker`;
  if (get("prompt").textContent !== pair.prompt || was === null) get("prompt").textContent = pair.prompt;
  get("prompt").className = pair.prompt.length > 260 ? "longer" : pair.prompt.length > 110 ? "long" : "";
  get("prompt").scrollTop = 0;
  const slow = setTimeout(() => all(".card").forEach((one) => one.classList.add("waiting")), 150);
  try {
    place(pair, await pictures(pair));
  } catch (error) {
    if (pair === shown) missing(pair, error);
    return;
  } finally {
    clearTimeout(slow);
    all(".card").forEach((one) => one.classList.remove("waiting"));
  }
  const near = new Set(left.slice(0, 1 + AHEAD).map((one) => one.number));
  for (const number of [...fetched.keys()]) if (!near.has(number)) fetched.delete(number);
  for (const one of left.slice(1, 1 + AHEAD)) pictures(one).catch(() => {});
}

function place(pair, both) {
  if (pair !== shown) return;
  const ratios = both.map((one) => Math.min(4, Math.max(0.25, one.naturalWidth / one.naturalHeight || 1)));
  get("ballot").style.setProperty("--broad", Math.max(...ratios));
  get("ballot").style.setProperty("--slim", Math.min(...ratios));
  get("ballot").classList.toggle("tall", Math.max(...ratios) < TALL);
  ["left", "right"].forEach((side, k) => {
    const small = Math.max(both[k].naturalWidth, both[k].naturalHeight) <= TINY;
    both[k].classList.toggle("tiny", small);
    get(side).style.setProperty("--own", ratios[k]);
    get(side).replaceChildren(both[k]);
  });
  free = true;
  since = performance.now();
}

function missing(pair, error) {
  ["left", "right"].forEach((side) => get(side).replaceChildren());
  if (error.gone || error.status) return complain(error.text, "Try again", show);
  return complain(error.text, "Skip this pair", () => { passed.add(pair.number); show(); });
}

function finish() {
  const ties = votes.filter((one) => one.vote === "tie").length;
  const left = votes.filter((one) => one.vote === "left").length;
  const times = votes.map((one) => one.seconds).filter((one) => one !== null).sort((a, b) => a - b);
  const middle = times.length / 2;
  const median = times.length % 2 ? times[Math.floor(middle)] : (times[middle - 1] + times[middle]) / 2;
  const share = votes.length > ties ? left / (votes.length - ties) : null;
  get("place").textContent = `${votes.length} of ${pairs.length}`;
  document.title = "Done · Vote · Tastemaker";
  get("done").textContent = votes.length === pairs.length
    ? pairs.length === 1 ? "The pair has its vote" : `All ${pairs.length} pairs have a vote` : `${votes.length} of ${pairs.length} pairs have a vote`;
  get("votes").textContent = votes.length;
  get("ties").textContent = ties;
  get("seconds").textContent = times.length ? median.toFixed(1) : "–";
  get("share").textContent = share === null ? "–" : `${Math.round(100 * share)} %`;
  get("meter").style.width = `${100 * (share ?? 0)}%`;
  get("passed").textContent = passed.size ? `Passed over, for a picture that cannot be shown: ${passed.size}. Reload to try again.` : "";
  get("end").focus({ preventScroll: true });
}

// ---- what is done

async function send() {
  free = false;
  mark(pending.vote);
  const seen = new Promise((done) => setTimeout(done, MARKED));
  try {
    await ask("vote", pending);
  } catch (error) {
    return refused(error);
  }
  await seen;
  votes.push(pending);
  pending = null;
  return show();
}

function refused(error) {
  if (error.status === 409) return load(); // it has a vote already: of another page, or its answer was lost
  if (error.status === 403) return complain("The session was started anew, so this vote does not count yet. Reload the page and vote again.", "Reload", () => location.reload());
  return complain(`${error.text} Your vote is not saved yet.`.replace(/([^.?!]) Your/, "$1. Your"), "Try again", send);
}

function cast(vote) {
  if (!free) return;
  pending = { pair: shown.number, vote, seconds: (performance.now() - since) / 1000 };
  send();
}

async function undo() {
  if (pending !== null) {
    if (get("alert").hidden) return; // it is under way
    pending = null; // it did not arrive, so there is nothing to take back but the mark
    hush();
    return show();
  }
  if (votes.length === 0 || (shown !== null && !free)) return;
  free = false;
  try {
    await ask("undo", {});
  } catch (error) {
    return error.status === 409 ? load() : complain(error.text, "Try again", () => { free = true; undo(); });
  }
  votes.pop();
  return show();
}

for (const one of all("[data-vote]")) one.addEventListener("click", (event) => {
  if (event.detail > 0) one.blur(); // after a click, Enter and space are not that picture's
  cast(one.dataset.vote);
});
get("undo").addEventListener("click", (event) => {
  if (event.detail > 0) get("undo").blur();
  undo();
});
document.addEventListener("keydown", (event) => {
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (event.repeat) return;
  if (act === "undo") undo(); else cast(act);
});
load();
