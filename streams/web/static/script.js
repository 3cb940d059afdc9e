// What a page does with script; without it every page, form and link works all the same.
"use strict";
(() => {
  const live = document.getElementById("live");
  const asOf = document.getElementById("as-of");
  const EVERY = 2000;

  // Times: how long ago, and the local time in the title.
  const said = (seconds) => {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return s + " s";
    if (s < 3600) return Math.floor(s / 60) + " min" + (s < 600 && s % 60 ? " " + (s % 60) + " s" : "");
    if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
    return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
  };
  const times = () => {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (isNaN(at)) continue;
      if (time.titled !== time.dateTime) time.title = at.toISOString().slice(0, 19).replace("T", " ") + " UTC, here " + at.toLocaleString();
      time.titled = time.dateTime;
      const away = (now - at) / 1000;
      const text = time.dataset.clock !== undefined ? at.toISOString().slice(11, 23)
        : away >= 0 ? said(away) + " ago" : "in " + said(-away);
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // A page's middle is asked for again every two seconds, while somebody looks and does nothing in it.
  const busy = () =>
    document.hidden || document.querySelector("dialog[open], main input:checked:not([data-quiet])") ||
    (live && live.contains(document.activeElement) && /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) ||
    (getSelection() && !getSelection().isCollapsed);
  let etag = null;
  const marks = () => ({
    focus: live.contains(document.activeElement) ? document.activeElement.id || document.activeElement.getAttribute("href") : null,
    open: new Set([...live.querySelectorAll("details[open][id]")].map((each) => each.id)),
    row: rowNumber,
  });
  const restore = (kept) => {
    for (const id of kept.open) document.getElementById(id)?.setAttribute("open", "");
    if (kept.focus && document.activeElement === document.body) {
      const again = [...live.querySelectorAll("a[href], button, summary, [tabindex]")].find(
        (each) => each.id === kept.focus || each.getAttribute("href") === kept.focus);
      again?.focus({ preventScroll: true });
    }
    mark(kept.row, false);
  };
  // Only parts that differ are replaced: what is the same does not move, and keeps ticks and focus.
  // Nor does what follows move up under a hand that is about to press: the lines that a part loses
  // stay empty. A part that loses much, a table that was emptied, closes up.
  const KEPT = 150;
  let before = new Map();
  const replace = (old, next) => {
    const high = old.offsetHeight;
    old.replaceWith(next);
    const lost = high - next.offsetHeight;
    if (lost > 0 && lost <= KEPT) next.style.minHeight = high + "px";
  };
  window.addEventListener("resize", () => {
    for (const each of document.querySelectorAll("[data-part]")) each.style.minHeight = "";
  });
  const partsOf = (root) => new Map([...root.querySelectorAll("[data-part]")].map((each) => [each.id, each.outerHTML]));
  const fresh = (html) => {
    const next = document.createElement("template");
    next.innerHTML = html;
    const kept = marks();
    const now = partsOf(next.content);
    const same = before.size === now.size && [...now.keys()].every((id) => before.has(id));
    if (same && now.size) {
      for (const [id, text] of now) {
        const old = document.getElementById(id);
        if (old && before.get(id) !== text) replace(old, next.content.getElementById(id));
      }
    } else {
      live.replaceChildren(next.content);
    }
    before = now;
    times();
    restore(kept);
  };
  const old = (why, at) => {
    document.body.classList.toggle("stale", Boolean(why));
    const line = document.getElementById("old");
    if (line) {
      line.hidden = !why;
      if (why) line.querySelector("span").textContent = why;
    }
    if (asOf && at) asOf.dateTime = at;
  };
  const counts = (told) => {
    for (const [name, count] of Object.entries(JSON.parse(told || "{}"))) {
      const badge = document.querySelector(`[data-count="${name}"]`);
      if (badge) badge.textContent = count;
    }
  };
  const ask = async () => {
    if (busy()) return;
    const url = new URL(location.href);
    url.searchParams.set("part", "live");
    url.hash = "";
    try {
      const answer = await fetch(url, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (answer.status === 401 || answer.redirected) return location.reload();
      if (answer.status !== 200 && answer.status !== 304) return old("The server answers " + answer.status + ".");
      if (answer.status === 200 && !busy()) {
        const text = await answer.text();
        if (!busy()) {
          fresh(text);
          etag = answer.headers.get("ETag");
        }
      }
      old(answer.headers.get("X-Figures-Old"), answer.headers.get("X-Figures-At"));
      counts(answer.headers.get("X-Counts"));
    } catch {
      old("The server does not answer.");
    }
  };

  // Keys: / search, ? help, g and a letter to go somewhere, j k to move, Enter to open, r to try one.
  const rows = () => [...document.querySelectorAll("main tbody tr[data-row]")];
  let rowNumber = -1;
  const mark = (number, scroll = true) => {
    const all = rows();
    all.forEach((row) => row.classList.remove("here"));
    rowNumber = all.length && number >= 0 ? Math.min(number, all.length - 1) : -1;
    const row = all[rowNumber];
    row?.classList.add("here");
    if (row && scroll) row.scrollIntoView({ block: "nearest" });
  };
  const help = document.getElementById("keys");
  let going = 0;
  const keys = {
    "/": () => document.getElementById("q")?.focus(),
    "?": () => help?.showModal(),
    j: () => mark(rowNumber + 1),
    k: () => mark(Math.max(0, rowNumber - 1)),
    Enter: () => rows()[rowNumber]?.querySelector("a[href]")?.click(),
    r: () => document.querySelector("[data-key=r]")?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (Date.now() - going < 1500) {
      going = 0;
      const to = document.querySelector(`.rail a[data-go="${CSS.escape(event.key)}"]`);
      if (to) { event.preventDefault(); to.click(); }
      return;
    }
    if (event.key === "g") { going = Date.now(); return; }
    if (event.key === "Enter" && /^(A|BUTTON|SUMMARY)$/.test(event.target.tagName)) return;
    const act = keys[event.key];
    if (act && !document.querySelector("dialog[open]")) { event.preventDefault(); act(); }
  });
  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) navigator.clipboard?.writeText(copy.dataset.copy).then(() => { copy.textContent = "copied"; });
  });

  times();
  setInterval(times, 1000);
  if (live && live.dataset.live !== undefined) {
    before = partsOf(live);
    setInterval(ask, EVERY);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  }
})();
