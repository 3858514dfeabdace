// The transcript as something to listen to: a segment plays at a click, and the words light up as they sound.
() => {
  // gradio's message is a button around the one that closes it, which a screen reader cannot tell apart; what it says of
  // itself is English.
  const translations = Object.entries(GRADIO_SENTENCES[navigator.language.split("-")[0]] ?? {});
  new MutationObserver(() => {
    for (const text of document.querySelectorAll('[data-testid="toast-text"]')) {
      const said = text.textContent.trim();
      const known = translations.find(([form]) => new RegExp(form).test(said));
      if (known) text.textContent = said.replace(new RegExp(known[0]), known[1]);
    }
    for (const header of document.querySelectorAll(".toast-header[role]")) {
      header.removeAttribute("role");
      header.removeAttribute("tabindex");
    }
  }).observe(document.body, {childList: true, subtree: true});

  let end = Infinity; // of the segment that was asked for, in seconds
  let timer = null;
  const player = () => document.querySelector("#player audio");
  const seconds = (element, name) => Number(element.dataset[name]);

  document.addEventListener("click", (event) => {
    const segment = event.target.closest(".text p[data-start]");
    const audio = player();
    if (!segment || !audio || event.target.isContentEditable || !getSelection().isCollapsed) return;
    audio.currentTime = seconds(segment, "start");
    end = seconds(segment, "end");
    audio.play();
  });

  const lightUp = () => {
    const audio = player();
    document.querySelectorAll(".text .now").forEach((word) => word.classList.remove("now"));
    if (!audio || audio.paused) {
      clearInterval(timer);
      timer = null;
      return;
    }
    const now = audio.currentTime;
    if (now >= end) audio.pause();
    for (const segment of document.querySelectorAll(".text p[data-start]")) {
      if (now < seconds(segment, "start") || now >= seconds(segment, "end")) continue;
      const begun = [...segment.querySelectorAll("i[data-start]")].filter((word) => seconds(word, "start") <= now);
      begun.at(-1)?.classList.add("now");
    }
  };
  // Events of media do not bubble, but are captured.
  document.addEventListener("play", () => (timer ??= setInterval(lightUp, 50)), true);
  document.addEventListener("pause", () => (end = Infinity), true);
  document.addEventListener("seeking", (event) => {
    const moved = event.target.currentTime;
    if (moved >= end) end = Infinity; // somebody went on by hand
  }, true);

  // Browsers give the microphone and the clipboard to pages of https and of this computer alone.
  document.documentElement.classList.toggle("insecure", !isSecureContext);
  window.viskaCopy = (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  // Text while somebody speaks. The recorder's own stream is listened to: a second one may mute it.
  const devices = navigator.mediaDevices;
  let stream = null;
  if (devices) {
    const open = devices.getUserMedia.bind(devices);
    devices.getUserMedia = async (wanted) => (stream = await open(wanted));
  }
  const tap = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process(inputs) {
      if (inputs[0][0]) this.port.postMessage(inputs[0][0].slice());
      return true;
    }
  })`;
  const SECONDS = 0.25, MOST_SAMPLES = 192000; // that go out at once: a request is bounded
  let speaking = null;

  const encode = (pieces) => {
    const samples = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let place = 0;
    for (const piece of pieces) { samples.set(piece, place); place += piece.length; }
    const bytes = new DataView(new ArrayBuffer(2 * samples.length));
    samples.forEach((value, at) => bytes.setInt16(2 * at, Math.max(-32768, Math.min(32767, value * 32768)), true));
    let text = "";
    for (let at = 0; at < bytes.byteLength; at++) text += String.fromCharCode(bytes.getUint8(at));
    return btoa(text);
  };
  const show = (settled, newest) => {
    const line = document.querySelector("#live p");
    if (!line) return;
    const words = document.createElement("span"), unsettled = document.createElement("i");
    words.textContent = settled + " ";
    unsettled.textContent = newest;
    line.replaceChildren(words, unsettled);
  };
  // One piece is on its way at a time, so that whatever the model needs, what comes next is the newest.
  const send = async (own) => {
    const rate = own.context.sampleRate;
    for (;;) {
      const length = own.pieces.reduce((sum, piece) => sum + piece.length, 0);
      if (length < SECONDS * rate && !own.ended) {
        await new Promise((resolve) => setTimeout(resolve, 50));
        continue;
      }
      const pieces = own.pieces.splice(0, MOST_SAMPLES / 128);
      const last = own.ended && !own.pieces.length;
      try {
        const answer = await fetch("gradio_api/run/live", {
          method: "POST",
          headers: {"Content-Type": "application/json"},
          body: JSON.stringify({data: [encode(pieces), rate, own.model, own.id, last]}),
        });
        if (!answer.ok) return; // the text comes at the end
        const [heard] = (await answer.json()).data;
        own.id = heard.id;
        if (speaking === own && !own.ended) show(heard.settled, heard.newest);
      } catch { return; }
      if (last) return;
    }
  };
  window.viskaSpeak = async (model) => {
    if (!stream || !window.AudioWorkletNode) return;
    const context = new AudioContext();
    const own = (speaking = {context, model, id: "", pieces: [], ended: false});
    show("", "");
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([tap], {type: "text/javascript"})));
    const node = new AudioWorkletNode(context, "tap");
    node.port.onmessage = (message) => own.ended || own.pieces.push(message.data);
    context.createMediaStreamSource(stream).connect(node);
    send(own);
  };
  window.viskaStop = () => {
    if (!speaking || speaking.ended) return;
    speaking.ended = true;
    speaking.context.close();
  };
  window.viskaPause = () => speaking?.ended || speaking?.context.suspend();
  document.addEventListener("click", (event) => { // gradio tells of no resuming
    if (event.target.closest("#microphone .resume-button")) speaking?.ended || speaking?.context.resume();
  });
}
