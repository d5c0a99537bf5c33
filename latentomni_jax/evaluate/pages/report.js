"use strict";
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);
const data = parsed("data");
const PAGE = 50;
const GROUPS = [["video", "video"], ["audio", "audio"], ["latent", "latents"], ["text", "words"]];  // and their classes
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

// An element; children are elements or texts, and texts stay texts.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// ---------------------------------------------------------------- a look inside

let item = null, video = null, still = 0, piece = 0, slot = -1;  // slot -1: the mean of a block's
let maps = [], seen = [], heard = [];  // of all blocks; of the chosen latent
let looking = 0;

async function look(number) {
  looking = number;
  const packed = new Blob([bytes(byId(`explored-${number}`).textContent)]).stream();
  const unpacked = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).json();
  if (looking !== number) return;  // another was chosen meanwhile
  item = unpacked;
  const [, clip] = data.explored[number];
  item.url = clip === null ? null : parsed(`clip-${clip}`);
  maps = item.blocks.map((block) => ({ seen: bytes(block.seen), heard: bytes(block.heard) }));
  byId("looked").value = number;
  byId("asked").textContent = item.question;
  byId("options").replaceChildren(...item.choices.map((choice) => make("li", {}, choice)));
  byId("verdict").replaceChildren(`Answer: ${item.answer ?? "not found"}`, ...(item.expected ? [", ",
    make("span", { class: item.right ? "right" : "wrong" }, item.right ? "right" : "wrong"), ` (expected ${item.expected})`] : []));
  show();
  layers();
  byId("pieces").replaceChildren(...item.pieces.map((one, i) => make("button",
    { class: one.kind === "latent" ? "latent" : null, onclick: () => choose(i) },
    one.kind === "latent" ? `latent block ${one.block + 1}` : one.text || "(nothing)")));
  const first = item.pieces.findIndex((one) => one.kind === "latent");
  choose(Math.max(first, 0));
  byId("explorer").hidden = false;
}
function bytes(text) {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i);  // millions of them
  return found;
}

function show() {
  still = 0;
  if (video) video.pause();
  const [, height, width] = item.frames.grid;
  const told = byId("unplayable");
  told.hidden = Boolean(item.url);
  told.textContent = `The clip is not in this page: ${item.video}`;
  shape(width || 16, height || 9);
  byId("stage").hidden = !item.url && !height;
  byId("play").disabled = !item.url;
  video = item.url ? make("video", { controls: "", preload: "auto", playsinline: "", src: item.url }) : null;
  const mine = video;
  byId("stage").replaceChildren(...(mine ? [mine] : []), byId("map"));
  if (!mine) return;
  mine.addEventListener("loadedmetadata", () => mine.videoWidth && shape(mine.videoWidth, mine.videoHeight));
  mine.addEventListener("error", () => {
    if (mine !== video) return;
    told.hidden = false;
    told.textContent = `The clip cannot be played: ${item.video}`;
    byId("play").disabled = true;
    video = null;  // time is then what the bars are clicked for
    mine.remove();
    draw();
  });
  const follow = () => {
    if (mine !== video) return;
    draw();
    if (!mine.paused) requestAnimationFrame(follow);
  };
  for (const event of ["play", "pause", "seeked", "timeupdate"]) mine.addEventListener(event, follow);
}
function shape(width, height) {
  const stage = byId("stage").style;
  stage.aspectRatio = `${width} / ${height}`;
  stage.width = `min(100%, ${55 * width / height}vh)`;
}

function choose(number, at = -1) {
  piece = Math.min(Math.max(number, 0), item.pieces.length - 1);
  const block = blockOf();
  slot = block ? Math.min(Math.max(at, -1), block.slots.length - 1) : -1;
  [...byId("pieces").children].forEach((one, i) => one.setAttribute("aria-current", i === piece));
  byId("slots").replaceChildren(...(block ? ["mean", ...block.slots] : []).map((name, i) => make("button",
    { "aria-pressed": i - 1 === slot, onclick: () => choose(piece, i - 1) }, name)));
  const one = item.pieces[piece];
  if (one) {
    byId("shares").replaceChildren(...GROUPS.map(([name, style]) => {
      const part = make("div", { class: style, title: `${name} ${percent(one.shares[name])}` });
      part.style.width = `${100 * one.shares[name]}%`;
      return part;
    }));
    byId("through").textContent = GROUPS.map(([name]) => `${name} ${percent(one.shares[name])}`).join(", ")
      + `; on the clip by way of latents ${percent(one.shares.through_latents)}.`;
  }
  [seen, heard] = ["seen", "heard"].map((name) => block ? weights(block, name) : []);
  byId("about").textContent = block ? told(block) : "Words: maps are of latents.";
  draw();
}
function blockOf() {
  const one = item.pieces[piece];
  return one && one.kind === "latent" ? item.blocks[one.block] : null;
}
function told(block) {
  const clock = block.clock[slot];
  const place = slot < 0 ? `mean of ${block.slots.length} latents`
    : `latent ${block.slots[slot]}${clock === null || clock === undefined ? "" : `, ${clock.toFixed(2)} s on the block's clock`}`;
  const peaks = [seen, heard].map((cells) => cells.length ? percent(most(cells), 2) : "nothing");
  return `${place}; the brightest cell has ${peaks[0]} of the attention (pictures), ${peaks[1]} (sound)`;
}
const most = (cells) => cells.reduce((a, b) => Math.max(a, b), 0);

// Weights of the chosen latent, or the mean of all, over the frames [T * h * w] or the sound [C].
function weights(block, name) {
  const all = maps[item.pieces[piece].block][name], count = block.slots.length, size = all.length / count;
  const chosen = slot < 0 ? block.slots.map((_, k) => k) : [slot];
  const unit = block[`${name}_max`] / 255 / chosen.length;
  const sum = new Float64Array(size);
  for (const k of chosen) for (let i = 0; i < size; i++) sum[i] += all[k * size + i] * unit;
  return sum;
}
const now = () => video ? video.currentTime : still;
function patchAt(time) {
  const starts = item.frames.seconds;
  let found = 0;
  while (found + 1 < starts.length && starts[found + 1] <= time + 1e-6) found++;
  return found;
}
// Dark to bright: violet, red, yellow.
function colour(x) {
  const [a, b, u] = x < 0.5 ? [[85, 20, 140], [230, 60, 50], 2 * x] : [[230, 60, 50], [255, 240, 120], 2 * x - 1];
  return a.map((from, i) => Math.round(from + (b[i] - from) * u));
}
function draw() {
  const time = now(), duration = item.duration || 1;
  const [count, height, width] = item.frames.grid;
  const peak = most(seen) || 1;
  const map = byId("map"), context = map.getContext("2d");
  map.width = Math.max(16 * width, 1);
  map.height = Math.max(16 * height, 1);
  if (seen.length) {
    const start = patchAt(time) * height * width;
    const cells = new ImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      const x = seen[start + i] / peak;
      cells.data.set([...colour(x), Math.round(200 * x)], 4 * i);
    }
    const small = make("canvas", { width, height });
    small.getContext("2d").putImageData(cells, 0, 0);
    context.drawImage(small, 0, 0, map.width, map.height);
  }
  const perPatch = Array.from({ length: seen.length ? count : 0 }, (_, i) =>
    seen.subarray(i * height * width, (i + 1) * height * width).reduce((sum, x) => sum + x, 0));
  strip("seen", perPatch, [...item.frames.seconds, duration], time);
  strip("heard", heard, Array.from({ length: heard.length + 1 }, (_, i) => i * duration / heard.length), time);
  byId("now").textContent = `${time.toFixed(2)} of ${duration.toFixed(2)} s`;
  byId("play").textContent = video && !video.paused ? "Pause" : "Play";
}
// Weights over the clip, cell i between two of its edges in seconds.
function strip(id, cells, edges, time) {
  const bar = byId(id), canvas = bar.querySelector("canvas"), context = canvas.getContext("2d");
  canvas.width = 800;
  canvas.height = 8;
  const peak = most(cells) || 1, scale = 800 / (item.duration || 1);
  cells.forEach((x, i) => {
    context.fillStyle = `rgba(${colour(x / peak).join()}, ${Math.sqrt(x / peak)})`;
    context.fillRect(edges[i] * scale, 0, (edges[i + 1] - edges[i]) * scale, 8);
  });
  bar.querySelector("i").style.left = `${100 * Math.min(time / (item.duration || 1), 1)}%`;
}
function seek(time) {
  if (video) video.currentTime = time;
  still = time;
  draw();
}
function toPeak() {
  const [, height, width] = item.frames.grid;
  if (seen.length) seek(item.frames.seconds[Math.floor(seen.indexOf(most(seen)) / (height * width))] + 0.01);
  else if (heard.length) seek((heard.indexOf(most(heard)) + 0.5) * item.duration / heard.length);
}
function layers() {
  byId("layers").replaceChildren(...item.layers.map((shares, i) => {
    const parts = shares.map((share, g) => {
      const part = make("div", { class: GROUPS[g][1] });
      part.style.height = `${100 * share}%`;
      return part;
    });
    return make("div", { title: `layer ${i}: ${shares.map((x, g) => `${GROUPS[g][0]} ${percent(x)}`).join(", ")}` }, parts);
  }));
}
function toggle() {
  if (!video) return;
  if (video.paused) video.play().catch(() => {});  // refused where it cannot be read, which is told
  else video.pause();
}

const ACTS = { back: () => choose(piece - 1), on: () => choose(piece + 1), up: () => choose(piece, slot - 1),
  down: () => choose(piece, slot + 1), play: toggle, peak: toPeak };
const KEYS = { ArrowLeft: "back", ArrowRight: "on", ArrowUp: "up", ArrowDown: "down", " ": "play" };
function beginExplorer() {
  const explorer = byId("explorer");
  byId("looked").hidden = data.explored.length < 2;
  byId("looked").append(...data.explored.map((one, i) => make("option", { value: i }, one[0])));
  byId("looked").addEventListener("change", (event) => look(Number(event.target.value)));
  for (const [id, act] of Object.entries(ACTS)) byId(id).addEventListener("click", act);
  for (const id of ["seen", "heard"]) {
    byId(id).addEventListener("click", (event) => {
      const box = byId(id).getBoundingClientRect();
      seek((event.clientX - box.left) / box.width * item.duration);
    });
  }
  // A button that the mouse has pressed leaves the keys to the explorer.
  explorer.addEventListener("click", (event) => {
    if (event.detail && !["SELECT", "SUMMARY"].includes(event.target.tagName)) explorer.focus({ preventScroll: true });
  });
  explorer.addEventListener("keydown", (event) => {
    const act = KEYS[event.key], tag = event.target.tagName;
    if (!act || event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT") return;
    if (event.key === " " && ["BUTTON", "SUMMARY"].includes(tag)) return;  // which it presses
    event.preventDefault();
    ACTS[act]();
  });
  look(0);
}

// ---------------------------------------------------------------- questions

const wanted = {};  // filter -> value
let found = [], page = 0, texts = null;
const outcomeOf = (question, run) => question.given[run] ? question.given[run].outcome : "not asked";

function filter() {
  const parts = (wanted.search || "").toLowerCase().split(/\s+/).filter(Boolean);
  if (parts.length && !texts) texts = new Map(data.questions.map((one) => [one, words(one)]));
  found = data.questions.filter((one) =>
    Object.entries(wanted).every(([name, value]) => value === "" || name === "search" || valuesOf(one, name).includes(value))
    && parts.every((part) => texts.get(one).includes(part)));
  turn(0);
}
const words = (one) => [one.id, one.video, one.question, ...one.given.flatMap((given) =>
  given ? [...given.choices, given.text, given.error] : [])].join("\n").toLowerCase();
function valuesOf(one, name) {
  const [kind, ...rest] = JSON.parse(name);
  if (kind === "run") return [outcomeOf(one, rest[0])];
  if (kind === "benchmark") return [one.benchmark];
  return Object.hasOwn(one.axes, rest[0]) ? [one.axes[rest[0]]].flat() : [];
}
function turn(to) {
  page = to;
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === last;
  byId("found").textContent = `${found.length} of ${data.questions.length} questions, page ${page + 1} of ${last + 1}`;
  byId("rows").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(row));
}
function row(one) {
  const verdicts = one.given.map((given) => given
    ? make("span", { class: given.outcome }, given.outcome === "right" || given.outcome === "wrong"
      ? `${given.answer} ${given.outcome}` : given.outcome) : null);
  const inside = make("div", { hidden: "" });
  return make("div", { class: "question" }, make("button", { "aria-expanded": "false", onclick: (event) => {
    inside.hidden = !inside.hidden;
    event.currentTarget.setAttribute("aria-expanded", !inside.hidden);
    if (!inside.hidden) inside.replaceChildren(...details(one));
  } }, make("span", { class: "note" }, one.id), make("b", {}, one.question), verdicts), inside);
}
function details(one) {
  const facts = [["video", one.video], ...(data.benchmarks.length > 1 ? [["benchmark", one.benchmark]] : []),
    ...Object.entries(one.axes).map(([axis, value]) => [axis, [value].flat().join(", ")])];
  return [pairs(facts), ...one.given.flatMap((given, i) => given ? [
    make("h3", {}, data.runs[i]),
    make("ol", { type: "A" }, given.choices.map((choice, k) =>
      make("li", { class: String.fromCharCode(65 + k) === given.expected ? "right" : null }, choice))),
    pairs(given.outcome === "failed" ? [["failed", given.error]] : [["answer", given.answer ?? "none"], ["rule", given.rule],
      ["expected", given.expected], ["tokens", given.tokens]]),
    given.text ? make("p", { class: "said" }, given.text) : null,
    given.explored === null ? null : make("button", { onclick: () => {
      look(given.explored);
      byId("explorer").scrollIntoView();
      byId("explorer").focus({ preventScroll: true });
    } }, "Look inside"),
  ].filter(Boolean) : [])];
}
const pairs = (facts) => make("dl", {}, facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

function beginList() {
  const select = (key, label, values) => byId("filters").append(make("select", { "aria-label": label, name: label,
    onchange: (event) => { wanted[key] = event.target.value; filter(); } },
    make("option", { value: "" }, `${label}: all`), [...new Set(values)].sort().map((value) => make("option", { value }, value))));
  const chooser = (key, label) => select(key, label, data.questions.flatMap((one) => valuesOf(one, key)));
  data.runs.forEach((name, i) => chooser(JSON.stringify(["run", i]), name));
  if (data.benchmarks.length > 1) chooser(JSON.stringify(["benchmark"]), "benchmark");
  for (const axis of data.axes) chooser(JSON.stringify(["axis", axis]), axis);
  byId("filters").append(make("input", { type: "search", name: "search", "aria-label": "search", placeholder: "search",
    oninput: (event) => { wanted.search = event.target.value; filter(); } }));
  byId("previous").addEventListener("click", () => turn(page - 1));
  byId("next").addEventListener("click", () => turn(page + 1));
  byId("list").hidden = false;
  filter();
}

if (data.explored.length) beginExplorer();
if (data.questions.length) beginList();
