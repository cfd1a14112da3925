"use strict";

// What is on the page. Clicks, and masks as they are drawn, are in pixels of the view, the photo as it is shown here.
const state = {
  photo: null, // the server's answer: key, name, size, view, masks
  picture: null,
  masks: new Map(), // by id, those of the list: {id, score, area, colour, outline, inside, fate}
  answer: [], // masks for the clicks, the smallest first
  choice: 0, // which of them
  prompt: [], // in order: {x, y, label} and {box: [x0, y0, x1, y1]}
  hover: null, // id of the mask that is shown filled
  cross: null, // the place that keys move: {x, y}
  corner: null, // the first corner of a box: {x, y}
};
let asked = 0; // number of the latest question: answers to earlier ones are dropped
let opened = 0; // the same for photos

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const pen = canvas.getContext("2d");
const file = $("file");

// ---- the server

class Refused extends Error {}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: body instanceof Blob ? body : JSON.stringify(body) });
  } catch {
    throw new Refused("The program does not answer. If it has ended, start sharpmask app again.");
  }
  if (!answer.ok) {
    const text = await answer.text();
    try { throw new Refused(JSON.parse(text).error); } catch (error) {
      throw error instanceof Refused ? error : new Refused(`The program answered ${answer.status}.`);
    }
  }
  return answer;
}

// Do something, say so meanwhile, and show its error.
async function attempt(words, work) {
  $("error").textContent = "";
  $("status").textContent = words;
  try { await work(); } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    $("error").textContent = error.message;
  } finally {
    if ($("status").textContent === words) $("status").textContent = "";
  }
}

function openPhoto(chosen) {
  const question = ++opened;
  return attempt(`Searching ${chosen.name} …`, async () => {
    const photo = await (await ask(`photos?name=${encodeURIComponent(chosen.name)}`, chosen)).json();
    const picture = new Image();
    picture.src = `photos/${photo.key}/view`;
    await picture.decode();
    if (question !== opened) return;
    Object.assign(state, { photo, picture, masks: new Map(), hover: null, cross: null });
    for (const mask of photo.masks) state.masks.set(mask.id, drawable(mask, photo));
    Object.assign(canvas, photo.view);
    canvas.style.setProperty("--width", `${photo.view.width}px`);
    canvas.style.setProperty("--aspect", photo.view.width / photo.view.height);
    Object.assign($("count"), { max: photo.masks.length, value: Math.min(10, photo.masks.length) });
    $("work").hidden = false;
    forget();
    list();
    const { width, height } = photo.size;
    $("status").textContent = `${photo.name}: ${width} × ${height} pixels, ${photo.masks.length} proposal${photo.masks.length === 1 ? "" : "s"}.`;
  });
}

// Ask for the masks that the prompt means.
function search() {
  const clicks = state.prompt.filter((part) => !part.box);
  const box = state.prompt.findLast((part) => part.box)?.box ?? null;
  if (!box && !clicks.some((click) => click.label)) {
    Object.assign(state, { answer: [], choice: 0 });
    showAnswer();
    if (clicks.length) $("status").textContent = "Now click on the object itself.";
    return;
  }
  const question = ++asked;
  const { size, view } = state.photo;
  const [across, down] = [size.width / view.width, size.height / view.height];
  const prompt = {
    points: clicks.map(({ x, y }) => [x * across, y * down]),
    labels: clicks.map(({ label }) => label),
    box: box && box.map((value, i) => value * (i % 2 ? down : across)),
  };
  attempt("Looking …", async () => {
    const found = await (await ask(`photos/${state.photo.key}/masks`, prompt)).json();
    if (question !== asked) return;
    state.answer = found.masks.map((mask) => drawable(mask, state.photo));
    const best = Math.max(...state.answer.map((mask) => mask.score));
    state.choice = Math.max(0, state.answer.findIndex((mask) => mask.score === best));
    showAnswer();
    if (!state.answer.length) throw new Refused("There is no mask: click elsewhere, or draw a box.");
  });
}

function download(kind) {
  const ids = kept().map((mask) => mask.id);
  attempt("Writing the file …", async () => {
    const content = await (await ask(`photos/${state.photo.key}/${kind}`, { masks: ids })).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `${state.photo.name.replace(/\.[^.]*$/, "")}-${kind}.${kind === "coco" ? "json" : "zip"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

// ---- masks

// The lengths of a mask's runs, from the text of a COCO RLE: 5 bits a character, most as differences.
function runs(text) {
  const counts = [];
  for (let i = 0; i < text.length; ) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(i++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// Where the columns of a mask are inside, by their x: lists of ends, from, to, from, to, …
function columnsOf({ size: [height], counts }) {
  const columns = new Map();
  let start = 0, isInside = false;
  for (const count of runs(counts)) { // down the first column, then down the next
    const end = start + count;
    for (let place = start; isInside && place < end; ) {
      const x = Math.floor(place / height), stop = Math.min(end, (x + 1) * height);
      if (!columns.has(x)) columns.set(x, []);
      columns.get(x).push(place - x * height, stop - x * height);
      place = stop;
    }
    start = end;
    isInside = !isInside;
  }
  return columns;
}

// The same at the size of the view: a pixel there is inside where the photo is at its middle.
function reduced(columns, view, size) {
  const found = new Map();
  for (let x = 0; x < view.width; x++) {
    const ends = [];
    for (const end of columns.get(Math.floor(((x + 0.5) * size.width) / view.width)) ?? []) {
      const y = Math.ceil((end * view.height) / size.height - 0.5);
      if (y === ends.at(-1)) ends.pop(); // nothing is between the two
      else ends.push(y);
    }
    if (ends.length) found.set(x, ends);
  }
  return found;
}

// A mask with what draws it on a photo.
function drawable(mask, photo) {
  const columns = reduced(columnsOf(mask.rle), photo.view, photo.size);
  const inside = new Path2D(), outline = new Path2D();
  for (const [x, ends] of columns) {
    for (let i = 0; i < ends.length; i += 2) inside.rect(x, ends[i], 1, ends[i + 1] - ends[i]);
    for (const y of ends) line(outline, x, y, x + 1, y);
    edge(outline, x, columns.get(x - 1) ?? [], ends);
    if (!columns.has(x + 1)) edge(outline, x + 1, ends, []);
  }
  const colour = `hsl(${(310 + mask.id * 222.5) % 360} 95% ${[60, 70, 50][mask.id % 3]}%)`;
  return { ...mask, colour, inside, outline, fate: "open" };
}

// The border at x between the columns with some ends: where one of the two is inside.
function edge(outline, x, left, right) {
  const ends = [...left, ...right].sort((a, b) => a - b);
  for (let i = 0; i < ends.length; i += 2) if (ends[i] < ends[i + 1]) line(outline, x, ends[i], x, ends[i + 1]);
}

function line(path, x0, y0, x1, y1) {
  path.moveTo(x0, y0);
  path.lineTo(x1, y1);
}

const kept = () => [...state.masks.values()].filter((mask) => mask.fate === "kept");

// Kept masks, and as many of the best others as the slider says.
function listed() {
  const others = [...state.masks.values()].filter((mask) => mask.fate === "open");
  return [...kept(), ...others.slice(0, Number($("count").value))];
}

// ---- what is seen

let waiting = false;
function draw() {
  if (waiting || !state.picture) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const pixel = canvas.width / (canvas.clientWidth || canvas.width); // of the screen
    pen.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
    for (const mask of listed()) drawMask(mask, pixel, mask.id === state.hover ? 0.5 : mask.fate === "kept" ? 0.3 : 0);
    if (state.answer.length) drawMask(state.answer[state.choice], 1.5 * pixel, 0.5);
    for (const part of state.prompt) drawPart(part, pixel);
    if (state.corner) drawPart({ box: corners(state.corner, state.cross) }, pixel);
    if (state.cross && document.activeElement === canvas) drawCross(pixel);
  });
}

function drawMask(mask, pixel, fill) {
  pen.fillStyle = pen.strokeStyle = mask.colour;
  if (fill) {
    pen.globalAlpha = fill;
    pen.fill(mask.inside);
    pen.globalAlpha = 1;
  }
  stroke(mask.outline, (fill ? 2.5 : 1.5) * pixel, pixel);
}

// In the colour that is set, with a dark rim, so that it shows on any photo.
function stroke(path, width, pixel) {
  const colour = pen.strokeStyle;
  for (const [style, more] of [["rgb(0 0 0 / 0.5)", 1.5 * pixel], [colour, 0]]) {
    Object.assign(pen, { strokeStyle: style, lineWidth: width + more });
    pen.stroke(path);
  }
}

function drawPart({ x, y, label, box }, pixel) {
  const path = new Path2D();
  if (box) path.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  else {
    line(path, x - 6 * pixel, y, x + 6 * pixel, y);
    if (label) line(path, x, y - 6 * pixel, x, y + 6 * pixel);
  }
  pen.strokeStyle = box ? "white" : label ? "#4ade80" : "#ff6b5e";
  stroke(path, (box ? 1.5 : 3) * pixel, pixel);
}

function drawCross(pixel) {
  const { x, y } = state.cross, path = new Path2D();
  for (const side of [-1, 1]) {
    line(path, x + side * 4 * pixel, y, x + side * 16 * pixel, y);
    line(path, x, y + side * 4 * pixel, x, y + side * 16 * pixel);
  }
  pen.strokeStyle = "white";
  stroke(path, 2 * pixel, pixel);
}

function areaOf({ area }) {
  const { width, height } = state.photo.size;
  const percent = (100 * area) / (width * height);
  return `${area.toLocaleString("en")} px (${percent.toFixed(percent < 1 ? 2 : 0)} %)`;
}

const described = (mask) => `${mask.score.toFixed(2)} · ${areaOf(mask)}`;

// Make the list of masks anew. The button that has the focus keeps it, or the next one in its place gets it.
function list() {
  const rows = $("list"), focus = document.activeElement;
  const row = [...rows.children].indexOf(focus?.closest?.("li")), role = focus?.dataset?.role;
  rows.replaceChildren(...listed().map(rowOf));
  if (row >= 0) (rows.children[row] ?? rows.lastElementChild)?.querySelector(`[data-role=${role}]`)?.focus();
  $("shown").textContent = $("count").value;
  $("kept").textContent = kept().length;
  for (const button of $("downloads").querySelectorAll("button")) button.disabled = !kept().length;
  $("restore").hidden = ![...state.masks.values()].some((mask) => mask.fate === "discarded");
  draw();
}

function rowOf(mask) {
  const row = document.createElement("li"), swatch = document.createElement("span"), name = document.createElement("span");
  const [score, area] = [document.createElement("b"), document.createElement("small")];
  row.dataset.id = mask.id;
  swatch.className = "swatch";
  swatch.style.background = mask.colour;
  name.className = "name";
  score.textContent = mask.score.toFixed(2);
  area.textContent = areaOf(mask);
  name.append(score, " ", area);
  row.append(swatch, name, button(mask, "Keep", "kept"), button(mask, "Discard", "discarded"));
  for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => hover(mask.id));
  for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, () => hover(null));
  return row;
}

function button(mask, word, fate) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: word, ariaLabel: `${word} the mask of score and area ${described(mask)}` });
  made.dataset.role = fate;
  if (fate === "kept") made.ariaPressed = String(mask.fate === "kept");
  made.addEventListener("click", () => {
    mask.fate = mask.fate === fate ? "open" : fate;
    list();
  });
  return made;
}

function hover(id) {
  if (state.hover === id) return;
  state.hover = id;
  for (const row of $("list").children) row.classList.toggle("hover", row.dataset.id === String(id));
  draw();
}

function showAnswer() {
  $("answer").hidden = !state.prompt.length;
  $("keep").disabled = !state.answer.length;
  const words = [[], ["The mask"], ["Smaller", "Larger"], ["Small", "Middle", "Large"]][state.answer.length] ?? [];
  $("choices").replaceChildren(...state.answer.map((mask, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "choice", checked: i === state.choice });
    input.addEventListener("change", () => { state.choice = i; draw(); });
    label.append(input, `${words[i]}: ${described(mask)}`);
    return label;
  }));
  if (state.answer.length) $("status").textContent = `${words[state.choice]}: ${described(state.answer[state.choice])}`;
  draw();
}

// ---- what is done

function forget() {
  asked++;
  if ($("answer").contains(document.activeElement)) canvas.focus(); // its buttons go
  Object.assign(state, { answer: [], choice: 0, prompt: [], corner: null });
  showAnswer();
}

function keepAnswer() {
  const mask = state.answer[state.choice];
  if (!mask) return;
  mask.fate = "kept";
  state.masks.set(mask.id, mask);
  forget();
  list();
  $("status").textContent = `Kept: ${described(mask)}.`;
}

function undo() {
  state.prompt.pop();
  search();
}

function another() {
  if (!state.answer.length) return;
  state.choice = (state.choice + 1) % state.answer.length;
  showAnswer();
}

const tool = () => document.querySelector("[name=tool]:checked").value;

function setTool(value) {
  document.querySelector(`[name=tool][value=${value}]`).checked = true;
  changeTool();
}

function changeTool() {
  canvas.classList.toggle("box", tool() === "box");
  state.corner = null;
  draw();
}

function click(place, isBeside) {
  state.prompt.push({ ...place, label: isBeside || tool() === "beside" ? 0 : 1 });
  search();
}

// A new box takes the place of an old one.
function enclose(from, to) {
  state.prompt = [...state.prompt.filter((part) => !part.box), { box: corners(from, to) }];
  search();
}

const corners = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];

function placeOf(event) {
  const shown = canvas.getBoundingClientRect();
  const within = (value, most) => Math.min(Math.max(value, 0), most);
  return {
    x: within(((event.clientX - shown.left) * canvas.width) / shown.width, canvas.width),
    y: within(((event.clientY - shown.top) * canvas.height) / shown.height, canvas.height),
  };
}

// The smallest listed mask at a place.
function maskAt({ x, y }) {
  const there = listed().filter((mask) => pen.isPointInPath(mask.inside, x, y));
  return there.length ? there.reduce((a, b) => (b.area < a.area ? b : a)).id : null;
}

// ---- pointer: a click, or a box where it was dragged

let press = null; // where the button went down
canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  press = { ...placeOf(event), screen: [event.clientX, event.clientY], isBox: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  const place = placeOf(event);
  if (!press) return hover(maskAt(place));
  const moved = Math.hypot(event.clientX - press.screen[0], event.clientY - press.screen[1]);
  press.isBox ||= moved > 6;
  if (!press.isBox) return;
  Object.assign(state, { corner: press, cross: place });
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  if (!press) return;
  const { isBox } = press, [from, to] = [press, placeOf(event)];
  Object.assign(state, { corner: null, cross: null });
  press = null;
  if (isBox) enclose(from, to);
  else if (tool() === "box") $("status").textContent = "Drag a box around the object.";
  else click(to, event.shiftKey);
});
canvas.addEventListener("pointercancel", () => {
  press = state.corner = null;
  draw();
});
canvas.addEventListener("pointerleave", () => hover(null));

// ---- keys on the photo

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  1: () => setTool("on"), 2: () => setTool("beside"), 3: () => setTool("box"),
  m: another, k: keepAnswer, u: undo, d: forget, escape: forget, enter: pressEnter,
};

function pressEnter(event) {
  if (tool() !== "box") return click(state.cross, event.shiftKey);
  if (!state.corner) state.corner = { ...state.cross };
  else {
    const from = state.corner;
    state.corner = null;
    if (from.x !== state.cross.x && from.y !== state.cross.y) enclose(from, state.cross);
  }
  draw();
}

function move([x, y], step) {
  const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
  state.cross = { x: within(state.cross.x + x * step, canvas.width), y: within(state.cross.y + y * step, canvas.height) };
  hover(maskAt(state.cross));
  draw();
}

canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const step = STEPS[event.key], action = KEYS[event.key.toLowerCase()];
  if (!step && !action) return;
  event.preventDefault();
  state.cross ??= { x: canvas.width / 2, y: canvas.height / 2 };
  if (step) move(step, event.shiftKey ? 1 : Math.max(canvas.width, canvas.height) / 50);
  else action(event);
});
canvas.addEventListener("focus", () => {
  if (canvas.matches(":focus-visible")) state.cross ??= { x: canvas.width / 2, y: canvas.height / 2 };
  draw();
});
canvas.addEventListener("blur", draw);

// ---- the rest of the page

file.addEventListener("change", () => {
  if (file.files.length) openPhoto(file.files[0]);
  file.value = ""; // the same photo may be chosen again
});
for (const event of ["dragover", "dragleave", "drop"])
  document.addEventListener(event, (moved) => {
    moved.preventDefault(); // else the browser would show the photo in place of the page
    document.body.classList.toggle("over", event === "dragover");
    if (event !== "drop") return;
    if (moved.dataTransfer.files.length) openPhoto(moved.dataTransfer.files[0]);
    else $("error").textContent = "That is no file: drop a photo from a folder.";
  });
for (const input of document.querySelectorAll("[name=tool]")) input.addEventListener("change", changeTool);
for (const made of $("downloads").querySelectorAll("button")) made.addEventListener("click", () => download(made.dataset.kind));
$("keep").addEventListener("click", keepAnswer);
$("discard").addEventListener("click", forget);
$("undo").addEventListener("click", undo);
$("count").addEventListener("input", list);
$("keep-all").addEventListener("click", () => {
  for (const mask of listed()) mask.fate = "kept";
  list();
});
$("restore").addEventListener("click", () => {
  for (const mask of state.masks.values()) if (mask.fate === "discarded") mask.fate = "open";
  list();
});
window.addEventListener("resize", draw);
