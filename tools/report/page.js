"use strict";
// The theme: what the system prefers, until the switch says otherwise.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const print = matchMedia("print");

document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  drawPlots();
});

// The plots: their colours are variables of the page, resolved each time they are drawn.
const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;

function resolve(value) {
  if (Array.isArray(value)) return value.map(resolve);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolve(inner)]));
  if (typeof value !== "string" || !value.startsWith("var(--")) return value;
  probe.style.color = value;
  return getComputedStyle(probe).color;
}

const plots = [...document.querySelectorAll(".plot")].map((place) => ({
  place,
  figure: JSON.parse(place.nextElementSibling.textContent),
}));

function drawPlots() {
  const family = getComputedStyle(document.querySelector("figure h3, nav") || document.body).fontFamily;
  for (const { place, figure } of plots) {
    const { data, layout } = resolve(figure);
    layout.font.family = family;
    layout.width = place.clientWidth;
    Plotly.react(place, data, layout, { displayModeBar: false });
  }
}

drawPlots();
dark.addEventListener("change", drawPlots);
print.addEventListener("change", drawPlots);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) drawPlots(); // a telephone's address bar changes the height alone
  width = innerWidth;
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

// The sentences of a report, the findings of an audit.
const list = document.getElementById("clips");
if (list) {
  const search = document.getElementById("search");
  const view = document.getElementById("view");
  const kind = document.getElementById("kind");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const atOnce = Number(list.dataset.atOnce);
  const noun = list.dataset.noun || "sentence";
  const plain = (text) => text.normalize("NFC").toLowerCase();
  const clips = [...list.children].map((item) => ({
    item,
    text: plain(item.dataset.text),
    errors: Number(item.dataset.errors),
    change: Number(item.dataset.change),
  }));
  const orders = {
    errors: (a, b) => b.errors - a.errors,
    change: (a, b) => Math.abs(b.change) - Math.abs(a.change),
    better: (a, b) => a.change - b.change,
    worse: (a, b) => b.change - a.change,
  };
  const filters = { better: (clip) => clip.change < 0, worse: (clip) => clip.change > 0 };
  let most = atOnce;

  const show = () => {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    const chosen = filters[view?.value] || (() => true);
    const fits = ({ item }) => !kind?.value || item.dataset.kind === kind.value;
    const found = clips.filter((clip) => chosen(clip) && fits(clip) && words.every((word) => clip.text.includes(word)));
    for (const { item } of clips) item.hidden = true;
    for (const { item } of found.slice(0, most)) item.hidden = false;
    const shown = Math.min(most, found.length);
    count.textContent = `${shown} of ${found.length} ${noun}${found.length === 1 ? "" : "s"}`;
    more.hidden = shown === found.length;
    more.textContent = `Show all ${found.length}`;
  };
  search.addEventListener("input", () => {
    most = atOnce;
    show();
  });
  kind?.addEventListener("change", () => {
    most = atOnce;
    show();
  });
  view?.addEventListener("change", () => {
    most = atOnce;
    clips.sort(orders[view.value]);
    list.append(...clips.map((clip) => clip.item));
    show();
  });
  more.addEventListener("click", () => {
    most = Infinity;
    show();
  });
  show();

  // One clip sounds at a time; a second click stops it.
  let playing = null;
  list.addEventListener("click", (event) => {
    const button = event.target.closest(".play");
    if (!button) return;
    const audio = button.nextElementSibling;
    const stop = playing === audio;
    if (playing) playing.pause();
    if (stop) return;
    playing = audio;
    audio.currentTime = 0;
    button.textContent = "■";
    audio.addEventListener("pause", () => {
      button.textContent = "▶";
      if (playing === audio) playing = null;
    }, { once: true });
    audio.play();
  });
}
