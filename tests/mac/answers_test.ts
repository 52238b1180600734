import assert from "node:assert/strict";
import { leftIn } from "./launchd.ts";
import { answerTo, beginPaper, NoAnswer, writeAnswer } from "./answers.ts";

Deno.test("an answer is what was returned, thrown, or not there in time", async () => {
  const kindOf = async (ask: () => Promise<string | NoAnswer>) => {
    const { kind, answer } = await answerTo("q", ask, 50);
    return [kind, answer];
  };
  assert.deepEqual(await kindOf(() => Promise.resolve("yes")), ["answered", "yes"]);
  assert.deepEqual(await kindOf(() => Promise.reject(new Error("bootstrap: 5"))), ["failed", "bootstrap: 5"]);
  assert.deepEqual(await kindOf(() => new Promise(() => {})), ["late", "no answer in 0.05 s"]);
  const none = new NoAnswer("not telling", "Gatekeeper is off");
  assert.deepEqual(await kindOf(() => Promise.resolve(none)), ["not telling", "Gatekeeper is off"]);
});

Deno.test("each answer is on paper at once: a row of the summary and a line of JSON", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    const printed: string[] = [];
    const paper = { summary: `${dir}/summary`, jsonl: `${dir}/jsonl`, print: (text: string) => printed.push(text) };
    beginPaper(paper, { system: "macOS 26.0", sip: "disabled" });
    writeAnswer(paper, { question: "one?", kind: "answered", answer: "a | b\nc", seconds: 1.5 });
    writeAnswer(paper, { question: "two?", kind: "late", answer: "no answer in 60 s", seconds: 60 });
    assert.equal(
      await Deno.readTextFile(`${dir}/summary`),
      "## What this Mac answers\n\nsystem: macOS 26.0 · sip: disabled\n\n| question | answer | s |\n| --- | --- | --- |\n" +
        "| one? | a \\| b c | 1.5 |\n| two? | **late**: no answer in 60 s | 60 |\n",
    );
    const lines = (await Deno.readTextFile(`${dir}/jsonl`)).trim().split("\n").map((line) => JSON.parse(line));
    assert.deepEqual(lines[0], { machine: { system: "macOS 26.0", sip: "disabled" } });
    assert.deepEqual(lines[1], { question: "one?", kind: "answered", answer: "a | b\nc", seconds: 1.5 });
    assert.equal(printed.length, 3);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("leftIn() finds the jobs of a run that was cut short", () => {
  const list =
    "PID\tStatus\tLabel\n-\t0\tcom.apple.x\n812\t0\torg.lima-guard.question.80.a1b2c3\n-\t0\torg.lima-guard.probe.x\n";
  assert.deepEqual(leftIn(list), ["org.lima-guard.question.80.a1b2c3"]);
});
