// The page: which case, which layers, what stands beside the canvas. Asks this server alone.
import { Stage, VIEWS } from "./drawing.js";

const el = (id) => document.getElementById(id);
const WINDOWS_HU = { "soft tissue": [-160, 240], lung: [-1350, 150], bone: [-450, 1050], brain: [0, 80] };
const state = {
  found: { cases: [], panels: [], notes: [] }, order: [], at: -1, loading: 0,
  detail: null, looks: new Map(), legends: new Map(), hidden: new Set(), shown: true, view: "all",
  asked: null,
};
const stage = new Stage(el("canvas"), showPoint);
window.mim3d = { state, stage }; // for a look from the browser's console

// Asking

async function ask(address) {
  const answer = await fetch(address);
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({ what: `the server answers ${answer.status}` }));
  throw Object.assign(new Error(told.what), { remedy: told.remedy });
}

function trouble(error) {
  const box = el("trouble");
  box.replaceChildren();
  if (!error) return void (box.hidden = true);
  const isGone = error instanceof TypeError;
  box.append(make("p", {}, isGone ? `The page cannot go on: ${error.message}. Is \`mim3d view\` still running?` : error.message));
  if (error.remedy) box.append(make("p", { className: "quiet" }, error.remedy));
  box.hidden = false;
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const rgb = (colour) => `rgb(${colour.join(",")})`;
const swatch = (colour) => {
  const node = make("span", { className: "swatch" });
  node.style.background = rgb(colour);
  return node;
};
const short = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value.toPrecision(digits)).toString());

// The list of cases

const meanDice = (row) => {
  const found = Object.values(row.dice).filter((value) => value !== null);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
};

function listCases() {
  const wanted = el("search").value.trim().toLowerCase();
  const rows = state.found.cases.map((row, number) => ({ row, number }));
  const order = el("order").value;
  if (order === "name") rows.sort((a, b) => a.row.name.localeCompare(b.row.name, undefined, { numeric: true }));
  if (order === "worst") rows.sort((a, b) => (meanDice(a.row) ?? 2) - (meanDice(b.row) ?? 2));
  const left = rows.filter(({ row }) => row.name.toLowerCase().includes(wanted));
  state.order = left.map(({ number }) => number);
  el("cases").replaceChildren(...left.map(({ row, number }) => {
    const mean = meanDice(row);
    const extras = row.roles.filter((role) => role !== "image");
    const facts = [row.part, extras.join(", ") || "image"].filter(Boolean).join(" · ");
    const button = make("button", { onclick: () => openCase(number) },
      make("span", { className: "name", title: row.name }, row.name), make("small", {}, facts),
      mean === null ? null : make("span", { className: "dice", title: `mean Dice of ${Object.keys(row.dice).join(", ")}` }, mean.toFixed(3)));
    button.dataset.case = number;
    return make("li", {}, button);
  }));
  markCase();
}

function markCase() {
  for (const button of el("cases").querySelectorAll("button")) {
    const isOpen = Number(button.dataset.case) === state.at;
    button.toggleAttribute("aria-current", isOpen);
    if (isOpen) {
      button.setAttribute("aria-current", "true");
      button.scrollIntoView({ block: "nearest" });
    }
  }
}

function go(step) {
  if (!state.order.length) return;
  const place = state.order.indexOf(state.at);
  const next = place < 0 ? 0 : (place + step + state.order.length) % state.order.length;
  openCase(state.order[next]);
}

// One case

// Tells, later on, whether another case has been opened since.
function leftBehind() {
  const mine = state.loading;
  return () => mine !== state.loading;
}

async function openCase(number) {
  ++state.loading;
  const isStale = leftBehind();
  stage.begin();
  state.at = number;
  markCase();
  el("case-name").textContent = state.found.cases[number].name;
  el("busy").hidden = false;
  el("stage").removeAttribute("data-ready");
  trouble(null);
  try {
    const detail = await (await ask(`case/${number}.json`)).json();
    if (isStale()) return;
    state.detail = detail;
    state.legends.clear();
    history.replaceState(null, "", `#${encodeURIComponent(detail.name)}`);
    listImages();
    makeOverlays();
    listScores();
    await stage.together(async () => {
      await showImage(isStale);
      // A label map that cannot be read is told, and hides neither the image nor the others.
      const read = await Promise.all(drawingOrder(detail.overlays).map((overlay) =>
        readLabels(overlay, isStale).catch((error) => void (isStale() || trouble(error)))));
      for (const labels of read.filter(Boolean)) if (!isStale()) await stage.showLabels(...labels);
      if (!isStale()) stage.goToLabels();
    });
    if (isStale()) return;
    await Promise.all(detail.pairs.map((pair) =>
      showDifference(pair).catch((error) => void (isStale() || trouble(error)))));
    if (isStale()) return;
    stage.point();
    listClasses();
    await compare(isStale);
    if (!isStale()) el("stage").dataset.ready = detail.name;
  } catch (error) {
    if (isStale()) return;
    forgetCase();
    trouble(error);
  } finally {
    if (!isStale()) el("busy").hidden = true;
  }
}

// Nothing of the case before may stand under the name of one that cannot be shown.
function forgetCase() {
  state.detail = null;
  state.legends.clear();
  stage.clear();
  stage.nv.drawScene();
  for (const id of ["image-section", "overlay-section", "score-section", "class-section"]) el(id).hidden = true;
  el("point").replaceChildren();
  caseFacts(null, null);
}

function listImages() {
  const { images } = state.detail;
  const before = el("image").selectedOptions[0]?.textContent;
  el("image").replaceChildren(...images.map((image, n) => make("option", { value: n }, image.name || "image")));
  // The same contrast as in the case before.
  const same = images.findIndex((image) => image.name === before);
  el("image").value = String(Math.max(0, same));
  el("image").hidden = images.length < 2;
  el("image-section").hidden = !images.length;
}

async function showImage(isStale, isSwap = false) {
  const image = state.detail.images[Number(el("image").value) || 0];
  if (!image) {
    // Labels alone are drawn over nothing: a black volume of their own grid.
    const answer = await ask(`labels/${state.detail.overlays[0].layer}.nii`);
    const buffer = await answer.arrayBuffer();
    if (isStale()) return;
    new Uint8Array(buffer, 352).fill(0);
    new DataView(buffer).setInt16(68, 0, true);
    await stage.showImage(buffer);
    caseFacts(null, answer.headers.get("X-Thinned"));
    return;
  }
  const answer = await ask(`image/${image.layer}/${image.channel}.nii`);
  const buffer = await answer.arrayBuffer();
  if (isStale()) return;
  const found = await (isSwap ? stage.changeImage(buffer) : stage.showImage(buffer));
  if (!found || isStale()) return;
  stage.setView(state.view);
  caseFacts(image, answer.headers.get("X-Thinned"));
  listWindows(found);
}

function caseFacts(image, thinned) {
  const parts = [];
  state.isThinned = Boolean(thinned);
  if (image) {
    parts.push(image.shape.join(" × "), `${image.spacing_mm.map((mm) => short(mm)).join(" × ")} mm`);
  }
  if (thinned) parts.push(`shown at every ${thinned.split("x").join(", ")}. voxel`);
  el("case-facts").textContent = parts.filter(Boolean).join(" · ");
  el("case-facts").title = image ? image.notes.join("\n") : "";
}

function listWindows(found) {
  const isCt = found.least < -500;
  const choices = { auto: found.robust, full: [found.least, found.most], ...(isCt ? WINDOWS_HU : {}) };
  const set = ([low, high]) => {
    stage.setWindow(low, high);
    el("low").value = short(low, 5);
    el("high").value = short(high, 5);
  };
  el("windows").replaceChildren(...Object.entries(choices).map(([name, range]) =>
    make("button", { onclick: () => { state.asked = name; set(range); } }, name)));
  set(choices[state.asked] ?? (isCt ? WINDOWS_HU["soft tissue"] : found.robust));
}

// Overlays

const keyOf = (overlay) => `labels/${overlay.layer}`;

function lookOf(key, fallback) {
  if (!state.looks.has(key)) state.looks.set(key, fallback);
  return state.looks.get(key);
}

// Looks go by role and name, so that the next case looks like this one; a label map beside a
// prediction looks otherwise than alone.
const hasPrediction = () => state.detail.overlays.some((overlay) => overlay.role === "prediction");
const lookKey = (overlay) => `${overlay.role} ${overlay.name} ${hasPrediction()}`;
const drawn = (look) => ({ ...look, shown: look.shown && state.shown, hidden: state.hidden });
// Outlines of labels lie over predictions.
const drawingOrder = (overlays) => [...overlays].sort((a, b) => (a.role === "label") - (b.role === "label"));

// What `stage.showLabels` takes; nothing where the label map is not shown.
async function readLabels(overlay, isStale) {
  const key = keyOf(overlay);
  const table = (await (await ask(`${key}.json`)).json()).classes;
  if (isStale()) return null;
  state.legends.set(key, { overlay, classes: table });
  const look = state.looks.get(lookKey(overlay));
  if (!look.shown) return null;
  const buffer = await (await ask(`${key}.nii`)).arrayBuffer();
  return [key, buffer, table, drawn(look)];
}

async function showDifference(pair) {
  const key = `compare/${pair.reference}/${pair.prediction}`;
  const look = state.looks.get(`difference ${pair.name}`);
  if (!look.shown || stage.overlays.has(key)) return stage.style(key, { ...drawn(look), hidden: new Set() });
  const isStale = leftBehind();
  const answer = await ask(`${key}.nii`);
  const classes = JSON.parse(answer.headers.get("X-Classes"));
  const buffer = await answer.arrayBuffer();
  if (!isStale()) await stage.showLabels(key, buffer, classes, { ...drawn(look), hidden: new Set() });
}

function makeOverlays() {
  const { overlays, pairs } = state.detail;
  let predictions = 0;
  const rows = overlays.map((overlay) => {
    // Labels as outlines over the first prediction: both can be seen at once.
    const isSecond = overlay.role === "prediction" && predictions++ > 0;
    const look = lookOf(lookKey(overlay), {
      shown: !isSecond, opacity: overlay.role === "label" && hasPrediction() ? 0.9 : 0.45,
      outline: overlay.role === "label" && hasPrediction(),
    });
    const change = async () => {
      const key = keyOf(overlay);
      if (!look.shown || stage.overlays.has(key)) return stage.style(key, drawn(look));
      const isStale = leftBehind();
      const labels = await readLabels(overlay, isStale);
      if (labels && !isStale()) await stage.showLabels(...labels);
    };
    return overlayRow(overlay.role, overlay.name, look, change);
  });
  rows.push(...pairs.map((pair) => {
    const look = lookOf(`difference ${pair.name}`, { shown: false, opacity: 0.8, outline: false });
    return overlayRow("difference", pair.name, look, () => showDifference(pair));
  }));
  el("overlays").replaceChildren(...rows);
  el("overlay-section").hidden = !rows.length;
}

function overlayRow(role, name, look, change) {
  const act = () => {
    const isStale = leftBehind();
    Promise.resolve(change()).catch((error) => isStale() || trouble(error));
  };
  const box = make("input", { type: "checkbox", checked: look.shown });
  const row = make("div", { className: "overlay" },
    make("label", {}, box, make("span", { className: "name", title: name }, name), make("span", { className: "role" }, role)));
  const opacity = make("input", { type: "range", min: 0.05, max: 1, step: 0.05, value: look.opacity, ariaLabel: `Opacity of ${name}` });
  const styles = make("div", { className: "segments" });
  for (const [outline, text] of [[false, "filled"], [true, "outline"]]) {
    const button = make("button", { ariaPressed: String(look.outline === outline) }, text);
    button.onclick = () => {
      look.outline = outline;
      for (const other of styles.children) other.ariaPressed = String(other === button);
      act();
    };
    styles.append(button);
  }
  box.onchange = () => {
    look.shown = box.checked;
    row.classList.toggle("off", !look.shown);
    act();
  };
  opacity.oninput = () => {
    look.opacity = Number(opacity.value);
    act();
  };
  row.classList.toggle("off", !look.shown);
  row.append(make("div", { className: "controls" }, opacity, styles));
  return row;
}

function restyle() {
  for (const [key, { overlay }] of state.legends) stage.style(key, drawn(state.looks.get(lookKey(overlay))));
  for (const key of stage.overlays.keys()) {
    if (!key.startsWith("compare/")) continue;
    const pair = state.detail.pairs.find((one) => key === `compare/${one.reference}/${one.prediction}`);
    stage.style(key, { ...drawn(state.looks.get(`difference ${pair.name}`)), hidden: new Set() });
  }
}

// Classes, with their volumes in each label map

const shortName = ({ role, name }) => {
  const isOnly = state.detail.overlays.filter((overlay) => overlay.role === role).length === 1;
  return role === "label" && isOnly ? "label" : name.split("/").pop();
};

function listClasses() {
  const columns = state.detail.overlays.map((overlay) => state.legends.get(keyOf(overlay))).filter(Boolean);
  const rows = new Map();
  columns.forEach(({ classes }, place) => {
    for (const one of classes) {
      const row = rows.get(one.value) ?? { ...one, ml: [] };
      row.ml[place] = one.ml;
      rows.set(one.value, row);
    }
  });
  const present = [...rows.values()].filter((row) => row.ml.some((ml) => ml > 0) || rows.size <= 12);
  const table = make("table");
  if (columns.length > 1) {
    table.append(make("tr", {}, make("th", {}, ""), ...columns.map(({ overlay }) =>
      make("th", { title: `${overlay.role} ${overlay.name}` }, shortName(overlay)))));
  }
  for (const row of present.sort((a, b) => a.value - b.value)) {
    const line = make("tr", { title: "click: hide or show; double click: this one alone" },
      make("td", { className: "class" }, swatch(row.colour), row.name),
      ...columns.map((_, place) => make("td", {}, short(row.ml[place] ?? null))));
    line.classList.toggle("hidden", state.hidden.has(row.value));
    line.onclick = (event) => {
      if (event.detail > 1) present.forEach((other) => state.hidden[other === row ? "delete" : "add"](other.value));
      else state.hidden[state.hidden.has(row.value) ? "delete" : "add"](row.value);
      listClasses();
      restyle();
    };
    table.append(line);
  }
  el("classes").replaceChildren(table);
  el("class-section").hidden = !present.length;
  el("all-classes").hidden = !state.hidden.size;
}

// Dice per class

function listScores(more = []) {
  const tables = [...Object.entries(state.detail.scores).map(([source, rows]) => ({ source, from: "results", rows })), ...more];
  el("scores").replaceChildren(...tables.flatMap(({ source, from, rows }) => [
    make("div", { className: "source" }, make("b", { title: source }, source), make("span", {}, from)),
    scoreTable(rows),
  ]));
  el("score-section").hidden = !tables.length;
}

function scoreTable(rows) {
  const colours = new Map([...state.legends.values()].flatMap(({ classes }) => classes.map((one) => [one.name, one.colour])));
  const hasDistances = rows.some((row) => row.hd95_mm !== null);
  const table = make("table", {}, make("tr", {}, make("th", {}, "class"), make("th", {}, "Dice"),
    hasDistances ? make("th", {}, "HD95 mm") : null));
  const counted = rows.filter((row) => row.dice !== null);
  for (const row of rows) {
    if (row.dice === null && rows.length > 12) continue;
    const colour = colours.get(row.class) ?? [86, 180, 233];
    const bar = make("i");
    bar.style.width = `${100 * (row.dice ?? 0)}%`;
    bar.style.background = rgb(colour);
    const isMissed = row.counted_as === "missed" || row.counted_as === "hallucinated";
    const dice = row.dice === null ? "absent" : row.dice.toFixed(3);
    table.append(make("tr", { className: isMissed ? "bad" : "", title: isMissed ? row.counted_as : "" },
      make("td", { className: "class" }, colours.has(row.class) ? swatch(colour) : null, row.class),
      make("td", {}, make("span", { className: "meter" }, bar), dice),
      hasDistances ? make("td", {}, short(row.hd95_mm)) : null));
  }
  if (counted.length > 1) {
    const mean = counted.reduce((sum, row) => sum + row.dice, 0) / counted.length;
    table.append(make("tr", { className: "mean" }, make("td", {}, "mean"), make("td", {}, mean.toFixed(3)),
      hasDistances ? make("td") : null));
  }
  return table;
}

// Where no results were given, prediction and label are compared here.
async function compare(isStale) {
  const hasScores = Object.keys(state.detail.scores).length > 0;
  const found = [];
  for (const pair of hasScores ? [] : state.detail.pairs) {
    try {
      const { rows } = await (await ask(`compare/${pair.reference}/${pair.prediction}.json`)).json();
      found.push({ source: pair.name, from: "computed here", rows });
    } catch (error) {
      if (!isStale()) trouble(error);
    }
  }
  if (!isStale()) listScores(found);
}

// The crosshair

function showPoint(location) {
  if (!state.detail) return;
  const lines = [["mm (RAS)", Array.from(location.mm).slice(0, 3).map((mm) => Number(mm).toFixed(1)).join(", ")]];
  if (!state.isThinned) lines.push(["voxel (RAS)", Array.from(location.vox).map(Math.round).join(", ")]);
  const volumes = stage.nv.volumes;
  location.values.forEach((told, place) => {
    const key = [...stage.overlays].find(([, volume]) => volume === volumes[place])?.[0];
    if (place === 0 && state.detail.images.length) lines.push(["intensity", short(told.value, 5)]);
    if (!key || !stage.overlays.get(key).classes) return;
    const row = stage.overlays.get(key).classes.find((one) => one.index === Math.round(told.value));
    const { overlay } = state.legends.get(key) ?? {};
    const name = key.startsWith("compare/") ? "difference" : overlay && shortName(overlay);
    if (name) lines.push([name, row ? row.name : "–"]);
  });
  el("point").replaceChildren(...lines.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
}

// Pictures of runs: one group a run and kind, its steps on a slider

const groups = () => {
  const found = new Map();
  state.found.panels.forEach((panel, number) => {
    const key = `${panel.run} ${panel.kind}`;
    if (!found.has(key)) found.set(key, { run: panel.run, kind: panel.kind, panels: [] });
    found.get(key).panels.push({ ...panel, number });
  });
  return [...found.values()].sort((a, b) => (b.kind === "reconstruction") - (a.kind === "reconstruction"));
};
let group = null;
let playing = null;

function listGroups() {
  el("groups").replaceChildren(...groups().map((one) => make("li", {},
    make("button", { onclick: () => openGroup(one) }, make("span", { className: "name" }, one.run),
      make("small", {}, `${one.kind}${one.panels.length > 1 ? ` · ${one.panels.length} pictures` : ""}`)))));
}

function openGroup(one) {
  group = one;
  stopPlaying();
  [...el("groups").querySelectorAll("button")].forEach((button, place) => {
    if (groups()[place].run === one.run && groups()[place].kind === one.kind) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  el("picture-title").textContent = `${one.run} · ${one.kind}`;
  el("step").max = String(one.panels.length - 1);
  el("step").value = String(one.panels.length - 1);
  el("step").parentElement.hidden = el("play").hidden = one.panels.length < 2;
  showPicture();
}

function showPicture() {
  const panel = group.panels[Number(el("step").value)];
  el("picture").src = `picture/${panel.number}.png`;
  el("picture").alt = `${panel.run}, ${panel.kind}, ${panel.title}`;
  el("step-name").textContent = panel.title;
}

function stopPlaying() {
  clearInterval(playing);
  playing = null;
  el("play").textContent = "▶ play";
}

el("play").onclick = () => {
  if (playing) return stopPlaying();
  el("play").textContent = "■ stop";
  playing = setInterval(() => {
    el("step").value = String((Number(el("step").value) + 1) % group.panels.length);
    showPicture();
  }, 900);
};
el("step").oninput = showPicture;

function showTab(isOfPictures) {
  stage.rest(isOfPictures);
  document.body.classList.toggle("of-pictures", isOfPictures);
  el("tab-cases").ariaSelected = String(!isOfPictures);
  el("tab-pictures").ariaSelected = String(isOfPictures);
  el("cases").hidden = el("finding").hidden = el("stage").hidden = isOfPictures;
  el("groups").hidden = el("pictures").hidden = !isOfPictures;
  if (isOfPictures && !group) openGroup(groups()[0]);
  if (!isOfPictures) stopPlaying();
}

// Controls

function setView(name) {
  state.view = name;
  for (const button of el("views").children) button.ariaPressed = String(button.dataset.view === name);
  stage.setView(name);
}

el("previous").onclick = () => go(-1);
el("next").onclick = () => go(1);
el("search").oninput = el("order").onchange = listCases;
el("views").onclick = (event) => event.target.dataset.view && setView(event.target.dataset.view);
el("image").onchange = () => {
  const [isLeft, wanted] = [leftBehind(), el("image").value];
  const isStale = () => isLeft() || el("image").value !== wanted;
  showImage(isStale, true).catch((error) => isStale() || trouble(error));
};
el("low").onchange = el("high").onchange = () => {
  state.asked = null;
  stage.setWindow(Number(el("low").value), Number(el("high").value));
};
el("smooth").onchange = () => stage.setSmooth(el("smooth").checked);
el("all-classes").onclick = () => {
  state.hidden.clear();
  listClasses();
  restyle();
};
el("tab-cases").onclick = () => showTab(false);
el("tab-pictures").onclick = () => showTab(true);
el("help-button").onclick = () => el("help").showModal();
stage.nv.onIntensityChange = (image) => {
  if (image !== stage.nv.volumes[0]) return;
  el("low").value = short(image.cal_min, 5);
  el("high").value = short(image.cal_max, 5);
};

// To the next case, or in pictures to the next step.
function move(step) {
  if (!document.body.classList.contains("of-pictures")) return go(step);
  el("step").value = String(Number(el("step").value) + step);
  showPicture();
}

const KEYS = {
  ArrowLeft: () => move(-1), ArrowRight: () => move(1), "/": () => el("search").focus(), "?": () => el("help").showModal(),
  h: () => { state.shown = !state.shown; restyle(); },
  o: () => {
    if (!state.detail) return;
    const looks = [...state.legends.values()].map(({ overlay }) => state.looks.get(lookKey(overlay)));
    const outline = !looks.every((look) => look.outline);
    looks.forEach((look) => (look.outline = outline));
    makeOverlays();
    restyle();
  },
};
Object.keys(VIEWS).forEach((name, place) => (KEYS[place + 1] = () => setView(name)));
window.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range]):not([type=checkbox]), select");
  if (event.key === "Escape" && isTyping) event.target.blur();
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || el("help").open || !KEYS[event.key]) return;
  if (event.key.startsWith("Arrow") && event.target.matches("input")) return;
  event.preventDefault();
  event.stopPropagation();
  KEYS[event.key]();
}, true);

async function start() {
  state.found = await (await ask("catalogue.json")).json();
  const { cases, panels, notes } = state.found;
  el("count-cases").textContent = cases.length;
  el("count-pictures").textContent = panels.length;
  el("tabs").hidden = !cases.length || !panels.length;
  el("notes").replaceChildren(...notes.map((note) => make("p", {}, note)));
  const hasScores = cases.some((row) => meanDice(row) !== null);
  el("order").querySelector("[value=worst]").hidden = !hasScores;
  listGroups();
  listCases();
  if (!cases.length) {
    showTab(true);
    el("stage").dataset.ready = "pictures";
    return;
  }
  await stage.start();
  setView("all");
  const asked = decodeURIComponent(location.hash.slice(1));
  const place = cases.findIndex((row) => row.name === asked);
  await openCase(place < 0 ? state.order[0] : place);
}

start().catch((error) => {
  el("busy").hidden = true;
  trouble(error);
});
