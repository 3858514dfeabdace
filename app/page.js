// The transcript as something to listen to: a segment plays at a click, and the words light up as they sound.
() => {
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
}
