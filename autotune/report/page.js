"use strict";
const errors = document.getElementById("errors");
addEventListener("error", e => { errors.textContent += `The page's script failed: ${e.message}. `; });
addEventListener("unhandledrejection", e => { errors.textContent += `The page's script failed: ${e.reason}. `; });

const STATUSES = ["ok", "refused", "failed", "wrong", "impossible"];
const data = JSON.parse(document.getElementById("data").textContent);
const cases = data.parts.flatMap(part => part.cases);
const tasks = [...document.querySelectorAll(".task")];

function element(name, text, more = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...more });
}

function time(us) {
  const [unit, scale] = [["ns", 1e-3], ["µs", 1], ["ms", 1e3], ["s", 1e6]].find(([u, s]) => us < 1e3 * s || u === "s");
  return `${+(us / scale).toPrecision(4)} ${unit}`;
}

// One task at a time, chosen from a list, by the arrows beside it or by a link.
function chooser() {
  const nav = document.getElementById("choose");
  const list = element("select", "", { ariaLabel: "Task" });
  list.append(element("option", "All tasks", { value: "" }));
  for (const part of data.parts) {
    const group = element("optgroup", "", { label: part.target });
    for (const one of part.cases) {
      const i = cases.indexOf(one);
      group.append(element("option", [one.key.kernel, one.what, one.where].filter(Boolean).join(" · "), { value: `t${i}` }));
    }
    list.append(group);
  }
  const step = by => {
    list.selectedIndex = Math.min(Math.max(list.selectedIndex + by, 1), list.length - 1);
    pick();
  };
  const back = element("button", "‹", { type: "button", ariaLabel: "Previous task", onclick: () => step(-1) });
  const on = element("button", "›", { type: "button", ariaLabel: "Next task", onclick: () => step(1) });
  function pick() {
    show(list.value);
    history.replaceState(null, "", `#${list.value || "tasks"}`);
  }
  function show(id) {
    list.value = id;
    for (const task of tasks) {
      task.hidden = id !== "" && task.id !== id;
      task.open = task.id === id;
    }
  }
  const named = () => tasks.some(t => `#${t.id}` === location.hash) ? location.hash.slice(1) : null;
  const follow = () => {
    if (named() === null) return;
    show(named());
    document.getElementById("tasks").scrollIntoView();
  };
  list.onchange = pick;
  addEventListener("hashchange", follow);
  nav.append(back, list, on);
  nav.hidden = false;
  if (named() !== null) follow();
  else if (tasks.length && location.hash !== "#tasks") show("t0");
}

// The headings of a table sort it; numbers stand in data-v.
function sortable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = element("button", head.textContent, { type: "button" });
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th[aria-sort]").forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const number = (a, b) => value(a) - value(b);
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const numeric = rows.every(row => row.cells[column].dataset.v !== undefined);
      rows.sort(numeric ? number : order);
      body.append(...(down ? rows.reverse() : rows));
    };
    head.replaceChildren(button);
  });
}

function copyable(code) {
  const button = element("button", "Copy", { type: "button", className: "copy" });
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  code.after(button);
}

// What stands at a point of a plot: [pixel x, pixel y, words] of each, in the order of x.
function spots(plot, one, series) {
  const [ax, bx, ay, by, floor] = plot.dataset.marks.split(" ").map(Number);
  if (plot.dataset.plot === "scatter") {
    const p = one.series[0].points;
    const at = new Map(p.rank.map((rank, i) => [rank, i]));
    return one.agreement.points.map(([predicted, measured, rank]) => [
      ax + bx * Math.log10(predicted), ay + by * Math.log10(measured),
      `predicted ${time(predicted)}, measured ${time(measured)}${at.has(rank) ? ` · ${config(p, at.get(rank))}` : ""}`,
    ]);
  }
  const p = series.points, x = plot.dataset.plot === "rank" ? p.rank : p.trial;
  const rows = STATUSES.slice(1).filter(s => series.counts[s]);
  return x.map((n, i) => {
    const us = p.microseconds[i], status = STATUSES[p.status[i]];
    const y = us === null ? floor + 11 * rows.indexOf(status) + 6 : ay + by * Math.log10(us);
    const of = `${+(100 * one.bound / us).toPrecision(2)} % of the bound`;
    const how = us === null ? `${status}: ${p.reasons[p.reason[i]]}` : `${time(us)}, ${of}`;
    return [ax + bx * n, y, `${how} · trial ${p.trial[i]} · ${config(p, i)}`];
  });
}

function config(points, i) {
  return Object.entries(points.config).filter(([, v]) => v[i] !== null).map(([k, v]) => `${k} ${v[i]}`).join(", ");
}

// Pointing at a plot, or the arrow keys in it, tell what the nearest point is.
function readable(plot) {
  const one = cases[tasks.indexOf(plot.closest(".task"))];
  const number = plot.closest(".series").dataset.series;
  const svg = plot.querySelector("svg"), told = element("output", "Point at a configuration, or step through them with the arrow keys.");
  let found = null, here = -1, ring = null;
  const all = () => found ??= spots(plot, one, one.series[number]).sort((a, b) => a[0] - b[0]);
  const tell = i => {
    here = i;
    const [x, y, words] = all()[i];
    if (!ring) {
      ring = document.createElementNS(svg.namespaceURI, "circle");
      ring.setAttribute("class", "here");
      ring.setAttribute("r", 6);
      svg.append(ring);
    }
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    told.textContent = words;
  };
  svg.tabIndex = 0;
  svg.onpointermove = svg.onpointerdown = e => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (e.clientX - box.left) * scale, y = (e.clientY - box.top) * scale;
    let best = -1, least = Infinity;
    all().forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    if (best >= 0) tell(best);
  };
  svg.onkeydown = e => {
    const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity }[e.key];
    if (by === undefined || !all().length) return;
    e.preventDefault();
    tell(Math.min(Math.max(here + by, 0), all().length - 1));
  };
  plot.append(told);
}

chooser();
document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll("code.config").forEach(copyable);
document.querySelectorAll(".plot:not(.knob)").forEach(readable);
document.documentElement.dataset.ready = String(tasks.length);
