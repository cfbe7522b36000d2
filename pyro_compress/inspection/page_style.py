"""Style and script of a page: light and dark, desktop and phone, screen and paper; the player of an animation.

The script is the same in every page, so that a page's policy can name it by its hash and forbid any other.
"""

CSS = """
:root { color-scheme: light dark; --ink: #1b2733; --soft: #5b6773; --line: #dde2e7; --paper: #fff; --shade: #f4f6f8;
  --accent: #23688c; --one: #23688c; --two: #a9432d; --three: #55803a; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6ec; --soft: #9fabb7; --line: #35414c; --paper: #14191f;
  --shade: #1e262e; --accent: #7ec0e0; --one: #2f7fa8; --two: #b8523b; --three: #5f8f40; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 70rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .2rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p.lead, figcaption, .note { color: var(--soft); }
.note, dd { overflow-wrap: anywhere; max-width: 46rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.facts div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.25; color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; min-width: min(100%, 36rem); }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.steps td:last-child { text-align: left; color: var(--soft); }
.split { display: flex; height: 2.2rem; border-radius: .4rem; overflow: hidden; margin: .4rem 0 .8rem; }
.split span { color: #fff; display: flex; align-items: center; justify-content: center; font-size: .85rem;
  overflow: hidden; white-space: nowrap; min-width: 2px; }
.c0 { background: var(--one); } .c1 { background: var(--two); } .c2 { background: var(--three); }
.chip { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .5rem; }
.gallery { columns: 2 26rem; column-gap: 2rem; }
figure { margin: 0 0 1.6rem; break-inside: avoid; }
figure h3 { font-size: 1rem; margin: 0 0 .3rem; }
figure img { width: 100%; max-width: 36rem; height: auto; display: block; }
figcaption { font-size: .9rem; margin-top: .3rem; }
.player .stage { position: relative; overflow: hidden; max-width: 100%; }
.player .stage img { position: absolute; left: 0; width: 100%; max-width: none; image-rendering: pixelated; }
.player .controls { display: flex; gap: .6rem; align-items: center; margin-top: .4rem; max-width: 36rem; }
.player .controls[hidden] { display: none; }
.player input { flex: 1; min-width: 0; accent-color: var(--accent); }
.player button { min-width: 4.5rem; font: inherit; padding: .2rem .6rem; color: inherit; background: var(--shade);
  border: 1px solid var(--line); border-radius: .4rem; cursor: pointer; }
.player output { font-size: .9rem; color: var(--soft); display: block; margin-top: .2rem; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: 0; }
pre { background: var(--shade); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
@media (max-width: 40rem) { body { padding: .8rem; } th, td { padding: .3rem .4rem; }
  th:first-child, td:first-child { white-space: normal; min-width: 6.5rem; } .split span { font-size: 0; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } pre { white-space: pre-wrap; }
  .gallery { columns: 2; } .player .controls { display: none; } }
"""

SCRIPT = """
for (const player of document.querySelectorAll(".player")) {
  const image = player.querySelector("img"), range = player.querySelector("input");
  const button = player.querySelector("button"), told = player.querySelector("output");
  const labels = JSON.parse(player.dataset.labels);
  let timer = 0;
  const show = place => {
    range.value = place;
    image.style.top = `${-100 * place}%`;
    told.textContent = labels[place];
  };
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  const step = () => {
    const place = Number(range.value) + 1;
    if (place < labels.length) show(place); else stop();
  };
  button.onclick = () => {
    if (timer) return stop();
    if (Number(range.value) === labels.length - 1) show(0);
    timer = setInterval(step, 250);
    button.textContent = "Pause";
  };
  range.oninput = () => { stop(); show(Number(range.value)); };
  player.querySelector(".controls").hidden = false;
}
"""
