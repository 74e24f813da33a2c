// Keeps the page of this moment: the server renders, this fetches the parts that have changed and puts them in place.
// Nothing is written without a question, and the token stays in this tab (sessionStorage), never in an address.
"use strict";

(() => {
  const EVERY_MS = 5000; // the cards' readings come that often, and it shows that the daemon answers
  const LEAST_MS = 300; // between two fetches
  const ANSWER_MS = 8000;
  const RETRY_MS = 2000;
  const QUICK = ["head", "cards", "queue", "timeline", "events"];
  const SLOW = ["waits", "changes", "alerts", "performance"];
  const TOKEN = "gpulockd-token";
  const MOODS = { good: "●", bad: "■", idle: "○" };

  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;

  // Putting new parts in place: only what differs is touched, so focus, open tables and the mouse stay where they are.

  function morph(old, now) {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || (old.id || "") !== (now.id || "")) {
      old.replaceWith(now);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
      return;
    }
    const isDetails = old.nodeName === "DETAILS";
    for (const { name } of [...old.attributes]) {
      if (!now.hasAttribute(name) && !(isDetails && name === "open")) old.removeAttribute(name);
    }
    for (const { name, value } of [...now.attributes]) {
      if (old.getAttribute(name) !== value && !(isDetails && name === "open")) old.setAttribute(name, value);
    }
    if (old.hasAttribute("data-keep")) return;
    const wanted = [...now.childNodes];
    const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
    wanted.forEach((child, i) => {
      const same = child.id ? known.get(child.id) : undefined;
      if (same && same !== old.childNodes[i]) old.insertBefore(same, old.childNodes[i] ?? null);
      if (i < old.childNodes.length) {
        const there = old.childNodes[i];
        if (there.id && there.id !== child.id && wanted.some((one) => one.id === there.id)) old.insertBefore(child, there);
        else morph(there, child);
      } else old.append(child);
    });
    while (old.childNodes.length > wanted.length) old.lastChild.remove();
  }

  // Where the focus was, from the inside outwards: what it was on may be gone when new parts are in place.

  function trail(from) {
    const found = [];
    for (let at = from; at && at !== document.body; at = at.parentElement) if (at.id) found.push(at.id);
    return found;
  }

  function back(ids) {
    if (document.activeElement !== document.body || document.querySelector("dialog[open]")) return;
    for (const id of ids) {
      $(id)?.focus({ preventScroll: true });
      if (document.activeElement !== document.body) return;
    }
  }

  // Numbers that count by themselves between two fetches.

  function age(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    const two = (number) => String(number).padStart(2, "0");
    const hundredths = Math.floor(100 * seconds + 1e-6);
    if (hundredths <= 0) return "0 s";
    if (seconds < 10) return hundredths < 10 ? `0.0${hundredths} s` : `${(Math.floor(hundredths / 10) / 10).toFixed(1)} s`;
    if (whole < 60) return `${whole} s`;
    if (whole >= 86400) return `${Math.floor(whole / 86400)} d ${two(Math.floor((whole % 86400) / 3600))} h`;
    const minutes = Math.floor(whole / 60) % 60;
    const hours = Math.floor(whole / 3600);
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
  }

  let shownAt = performance.now();

  function tick() {
    const passed = (performance.now() - shownAt) / 1000;
    for (const one of document.querySelectorAll("[data-up]")) one.textContent = age(Number(one.dataset.up) + passed);
    for (const one of document.querySelectorAll("[data-down]")) one.textContent = age(Number(one.dataset.down) - passed);
  }

  // Live, or stale and since when.

  let answeredAt = performance.now();
  let stream = null;
  let streaming = false;

  function tell(mood, text) {
    const pill = $("live");
    const whole = `${MOODS[mood]} ${text}`;
    if (pill.textContent !== whole) pill.textContent = whole;
    pill.dataset.mood = mood;
    document.body.classList.toggle("stale-page", mood === "bad");
  }

  function judge() {
    const silent = performance.now() - answeredAt;
    if (streaming && silent < EVERY_MS + ANSWER_MS) tell("good", "live");
    else if (streaming || silent > RETRY_MS) tell("bad", `stale for ${age(silent / 1000)}`);
    else tell("idle", "connecting");
  }

  // Fetching.

  let busy = false;
  let due = null; // names of parts that somebody wants
  let lastFetch = -LEAST_MS;
  let timer = 0;

  function want(names, inMs = 0) {
    due = new Set([...(due ?? []), ...names]);
    if (busy || document.hidden) return;
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(inMs, lastFetch + LEAST_MS - performance.now(), 0));
  }

  function chosenSpan() {
    const span = new URLSearchParams(location.search).get("span");
    return span ? `&span=${encodeURIComponent(span)}` : "";
  }

  async function refresh() {
    if (busy || !due) return;
    const names = [...due];
    due = null;
    busy = true;
    lastFetch = performance.now();
    try {
      const answer = await fetch(`/?parts=${names.join(",")}${chosenSpan()}`, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
      if (!answer.ok) throw new Error(answer.statusText);
      const focused = trail(document.activeElement);
      const made = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const name of names) {
        const now = made.getElementById(`part-${name}`);
        const old = $(`part-${name}`);
        if (now && old) morph(old, document.importNode(now, true));
      }
      back(focused);
      answeredAt = shownAt = performance.now();
      if (names.includes("waits")) drawWaits();
      tick();
    } catch {
      // Whoever looks is told by the stale mark; the next fetch comes by itself.
    } finally {
      busy = false;
      judge();
      if (due) want([]);
    }
  }

  function listen() {
    stream?.close();
    stream = new EventSource("/api/v1/events");
    stream.onopen = () => {
      streaming = true;
      answeredAt = performance.now();
      want([...QUICK, ...SLOW]); // what happened before the stream began
    };
    stream.onerror = () => {
      streaming = false;
      judge();
      if (stream.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
    };
    const kinds = root.dataset.kinds.split(" ");
    for (const kind of kinds) stream.addEventListener(kind, heard);
  }

  let after = 0;

  function heard(event) {
    answeredAt = performance.now();
    const more = /^(config|alert)_/.test(event.type) ? ["changes", "alerts"] : [];
    want([...QUICK, ...more]);
    clearTimeout(after); // once more when it is quiet: what follows an event without being one
    after = setTimeout(() => want([...QUICK, ...more]), 1000);
  }

  // Acting: ask first, send with the token, say what came of it.

  function answered(dialog) {
    return new Promise((resolve) => {
      dialog.returnValue = "no";
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
      dialog.showModal();
    });
  }

  async function askToken(wrong) {
    $("token-wrong").hidden = !wrong;
    $("token-text").value = "";
    const given = (await answered($("token"))) && $("token-text").value.trim();
    $("token-text").value = "";
    if (given) sessionStorage.setItem(TOKEN, given);
    return given || null;
  }

  async function send(method, path, body) {
    let token = sessionStorage.getItem(TOKEN);
    if (!token && root.dataset.writes === "token") {
      token = await askToken(false);
      if (!token) return null;
    }
    for (;;) {
      const headers = { accept: "application/json" };
      if (token) headers.authorization = `Bearer ${token}`;
      if (body) headers["content-type"] = "application/json";
      const answer = await fetch(path, { method, headers, body, cache: "no-store", credentials: "omit" });
      if (answer.status !== 401) return answer;
      sessionStorage.removeItem(TOKEN);
      token = await askToken(Boolean(token));
      if (!token) return null;
    }
  }

  const acting = new Set();

  async function act(button) {
    if (acting.has(button.id)) return;
    const home = trail(button);
    $("ask-text").textContent = button.dataset.ask;
    $("ask-yes").textContent = button.textContent.replace("…", "").trim();
    const { method, path, body, done } = button.dataset; // what was asked, whatever becomes of the button meanwhile
    const agreed = await answered($("ask"));
    back(home);
    if (!agreed) return;
    acting.add(button.id);
    button.ariaDisabled = "true"; // one that is disabled would lose the focus
    try {
      const answer = await send(method, path, body);
      if (!answer) {
        say("nothing was done: it needs the token");
        return;
      }
      const said = await answer.json().catch(() => ({}));
      if (answer.ok) say([said.message || done, ...checked(said.checks)].join("\n"));
      else if (answer.status === 404) say("it has ended meanwhile; here is what there is now");
      else say(`${said.detail || answer.statusText}${said.hint ? `: ${said.hint}` : ""}`);
      want([...QUICK, ...SLOW]);
    } catch {
      say("the daemon did not answer");
    } finally {
      acting.delete(button.id);
      button.ariaDisabled = null;
      back(home);
    }
  }

  function checked(checks) {
    return Object.entries(checks ?? {}).map(([name, found]) => `${found === true ? MOODS.good : "–"} ${name.replaceAll("_", " ")}: ${found === true ? "well" : found}`);
  }

  let saying = 0;

  function say(text) {
    $("said").textContent = text;
    clearTimeout(saying);
    saying = setTimeout(() => ($("said").textContent = ""), text.includes("\n") ? 30000 : 8000);
  }

  // The histogram of waits, drawn from its table.

  let plot = null;
  let drawn = "";

  function colour(box, name) {
    const probe = document.createElement("i");
    probe.className = name;
    box.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function drawWaits() {
    const box = $("histogram");
    if (!box || typeof uPlot !== "function") return;
    const rows = [...document.querySelectorAll("#waits-table tr[data-edge]")];
    const edges = rows.map((row) => row.dataset.edge);
    const counts = rows.map((row) => Number(row.dataset.count));
    const bar = getComputedStyle(box).color;
    const key = [box.clientWidth, bar, ...counts].join();
    if (key === drawn && box.contains(plot?.root)) return;
    drawn = key;
    plot?.destroy();
    const stroke = colour(box, "probe-text");
    const grid = { stroke: colour(box, "probe-grid"), width: 1 };
    const font = "11px system-ui, sans-serif";
    const axis = { stroke, font, ticks: { show: false } };
    plot = new uPlot(
      {
        width: Math.max(200, box.clientWidth),
        height: 170,
        padding: [8, 4, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: [-0.6, counts.length - 0.4] }, y: { range: (_, __, most) => [0, Math.max(1, most)] } },
        axes: [
          { ...axis, grid: { show: false }, size: 26, splits: counts.map((_, i) => i), values: (_, at) => at.map((i) => edges[i]) },
          { ...axis, grid, size: 38, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000, 1000000] },
        ],
        series: [{}, { fill: bar, stroke: bar, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.8, 60] }) }],
      },
      [counts.map((_, i) => i), counts],
      box,
    );
  }

  // Light, dark, or as the system says.

  function chooseTheme(theme) {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    $("theme").textContent = `theme: ${theme || "auto"}`;
    try {
      if (theme) localStorage.setItem("gpulockd-theme", theme);
      else localStorage.removeItem("gpulockd-theme");
    } catch {
      // It lasts as long as the page.
    }
    drawWaits();
  }

  $("theme").addEventListener("click", () => {
    const themes = ["", "light", "dark"];
    chooseTheme(themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawWaits);
  addEventListener("resize", drawWaits);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.act");
    if (button) act(button);
  });
  $("token-no").addEventListener("click", () => $("token").close("no"));
  $("said").addEventListener("click", () => say(""));
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) want([...QUICK, ...SLOW]);
  });

  for (const table of document.querySelectorAll("details.data")) table.open = false;
  chooseTheme(root.dataset.theme ?? "");
  let turn = 0;
  setInterval(() => want(turn++ % 2 ? [...QUICK, ...SLOW] : ["head", "cards", "queue"]), EVERY_MS);
  setInterval(() => {
    tick();
    judge();
  }, 1000);
  listen();
})();
