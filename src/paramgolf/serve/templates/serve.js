(() => {
  const byId = (id) => document.getElementById(id);
  const form = byId("form"), passage = byId("passage"), status = byId("status"), stop = byId("stop");
  let tokens = [], request = null, timer = 0;
  const explained = explainTokens(passage, byId("tip"), (number) => tokens[number]);

  function say(text, failed = false) {
    status.textContent = text;
    status.classList.toggle("failed", failed);
  }

  function add(token) {
    const span = document.createElement("span");
    span.className = `t q${token.level}` + (token.kind === "text" ? "" : ` ${token.kind}`)
      + (token.given ? "" : " drawn");
    span.textContent = token.text;
    span.tabIndex = tokens.length ? -1 : 0;
    if (token.mark) {
      const mark = document.createElement("i");
      mark.textContent = token.mark;
      span.append(mark);
    }
    tokens.push(token);
    passage.append(span);
  }

  const each = (bits, count) => count ? (bits / count).toFixed(2) : "0.00";
  function sums({given, given_bits, given_bytes, drawn, drawn_bits}) {
    const parts = [];
    if (given) parts.push(`typed: ${given} tokens, ${given_bits.toFixed(1)} bits, ${each(given_bits, given_bytes)} per byte`);
    if (drawn) parts.push(`written: ${drawn} tokens, ${each(drawn_bits, drawn)} bits per token`);
    return parts.join("; ");
  }

  async function* received(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
    }
  }

  // Reads the text; with max_tokens, also continues it. What was under way ends: the server notices
  // that its connection is closed.
  async function ask(options) {
    clearTimeout(timer);
    request?.abort();
    const own = request = new AbortController();
    stop.disabled = !options.max_tokens;
    passage.setAttribute("aria-busy", "true");
    if (options.max_tokens) say("Writing");
    let ended = false;
    try {
      const response = await fetch("tokens", {
        method: "POST", headers: {"Content-Type": "application/json"}, signal: own.signal,
        body: JSON.stringify({prompt: byId("prompt").value, ...options}),
      });
      if (!response.ok) throw new Error((await response.json()).error.message);
      let first = true;
      for await (const item of received(response)) {
        if (item.error) throw new Error(item.error.message);
        if (first) {
          tokens = [];
          passage.replaceChildren();
          explained.reset();
          first = false;
        }
        if (item.end) { say(sums(item.end)); ended = true; } else add(item);
      }
      if (!ended) throw new Error("the server ended the connection");
    } catch (error) {
      if (own === request) {
        if (own.signal.aborted) say("Stopped");
        else say(error instanceof TypeError ? "The server cannot be reached" : error.message, true);
      }
    }
    if (own === request) {
      stop.disabled = true;
      passage.removeAttribute("aria-busy");
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const options = {};
    for (const name of ["temperature", "top_p", "max_tokens", "seed"]) options[name] = byId(name).valueAsNumber;
    ask(options);
  });
  byId("prompt").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => ask({max_tokens: 0}), 300);
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => request?.abort());
})();
