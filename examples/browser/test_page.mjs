// Draws digits with the mouse in headless Chromium and checks what the page reads.
// node test_page.mjs URL [SCREENSHOT]; CHROMIUM names the browser.
import assert from "node:assert";
import { chromium } from "playwright-core";

const [url, screenshot] = process.argv.slice(2);
const arc = (cx, cy, rx, ry, from, to) =>
  [...Array(25).keys()].map((i) => from + ((to - from) * i) / 24).map((a) => [cx + rx * Math.cos(a), cy + ry * Math.sin(a)]);
const PI = Math.PI;
const DIGITS = {
  0: [arc(140, 140, 50, 85, -PI / 2, 1.5 * PI)],
  1: [[[150, 50], [140, 230]]],
  2: [[...arc(140, 100, 50, 50, -PI, 0.2 * PI), [90, 220], [205, 220]]],
  3: [[...arc(130, 95, 50, 42, -0.8 * PI, 0.5 * PI), ...arc(130, 180, 55, 45, -0.5 * PI, 0.8 * PI)]],
  4: [[[110, 50], [85, 150], [200, 150]], [[175, 60], [165, 235]]],
  7: [[[80, 60], [200, 60], [130, 230]]],
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
try {
  const page = await browser.newPage({ viewport: { width: 800, height: 560 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(url);
  await page.waitForSelector("body[data-ready=yes]", { timeout: 60000 }).catch(() => assert.fail(errors.join("; ")));
  const pad = await page.locator("#pad").boundingBox();
  for (const [digit, strokes] of Object.entries(DIGITS)) {
    await page.click("#clear");
    for (const [first, ...rest] of strokes) {
      await page.mouse.move(pad.x + first[0], pad.y + first[1]);
      await page.mouse.down();
      for (const [x, y] of rest) await page.mouse.move(pad.x + x, pad.y + y, { steps: 4 });
      await page.mouse.up();
    }
    await page.waitForFunction(() => document.getElementById("digit").textContent !== "");
    await page.waitForTimeout(300);
    const read = await page.textContent("#digit");
    console.log(`drew ${digit}, read ${read}; ${await page.textContent("#status")}`);
    assert.equal(read, digit);
    if (screenshot && digit === "3") await page.screenshot({ path: screenshot });
  }
  assert.deepEqual(errors, []);
} finally {
  await browser.close();
}
