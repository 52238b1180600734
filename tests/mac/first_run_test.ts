/** docs/first-mac-run.md: each line that a person types on a Mac is whole, and does there what can be shown here. */

import assert from "node:assert/strict";
import { MAC_TARGETS } from "../../tools/compile.ts";
import { project } from "../helpers/paths.ts";
import { readProbe } from "./probe.ts";

const PAGE = Deno.readTextFileSync(`${project}/docs/first-mac-run.md`);
/** The commands, by the number of their line: the first words between backticks of each. */
const TYPED = new Map(
  PAGE.split(/^(?=\d+\. )/m).slice(1).flatMap((item): [number, string][] => {
    const [, n = "", command = ""] = /^(\d+)\. `([^`]+)`/.exec(item) ?? [];
    return n === "" ? [] : [[Number(n), command.replaceAll(/\s+/g, " ")]];
  }),
);

async function run(argv: readonly string[], env: Record<string, string> = {}): Promise<{ code: number; said: string }> {
  const [program = "", ...args] = argv;
  const how = { args, env, cwd: project, stdin: "null" } as const;
  const { code, stdout, stderr } = await new Deno.Command(program, how).output();
  return { code, said: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test("fourteen lines; those that are typed are for any shell of a Mac, and what they name exists", async () => {
  assert.deepEqual(PAGE.match(/^\d+\./gm), Array.from({ length: 14 }, (_, n) => `${n + 1}.`));
  assert.deepEqual([...TYPED.keys()], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
  const tasks = JSON.parse(Deno.readTextFileSync(`${project}/deno.json`)).tasks;
  for (const command of TYPED.values()) {
    for (const shell of ["sh", "bash", "zsh"]) {
      if ((await run(["sh", "-c", `command -v ${shell}`])).code !== 0) continue;
      assert.deepEqual(await run([shell, "-n", "-c", command]), { code: 0, said: "" }, command);
    }
    for (const [, task = ""] of command.matchAll(/ task (\w+)/g)) assert.ok(task in tasks, task);
    for (const [path] of command.matchAll(/\btests\/[\w/.]+/g)) Deno.statSync(`${project}/${path}`);
  }
});

Deno.test("what asks for root without a password comes after a sudo -v: its ticket may be old", () => {
  // Step 4 needs no root; step 8 is typed twice, and reads only.
  const asking = [...TYPED].filter(([n]) => n !== 4 && n !== 8);
  for (const [n, command] of asking) assert.ok(command.startsWith("sudo -v && "), `${n}. ${command}`);
});

Deno.test("six ways down, each with what is to be done and what the notes show; what they show are the reader's words", () => {
  const rows = [...PAGE.matchAll(/^\| (?!way down|---)(.+?) +\| (.+?) +\| (.+?) +\|$/gm)].map(([, ...cells]) => cells);
  assert.deepEqual(rows.map(([way]) => way), [
    "restart from the menu",
    "`shutdown`, a user at the screen",
    "`shutdown`, no user logged in",
    "`launchctl reboot`",
    "a system update",
    "the power button",
  ]);
  const run = "1 main start\n1 main boot A\n";
  const notes = `${run}2 main TERM\n2 main who ci console\n`;
  const said = [readProbe(`${run}${run}`), readProbe(`${notes}${run}`)].join("\n");
  for (const words of ["a user at the screen", "a logout", "no SIGTERM: killed, or the power went"]) {
    assert.ok(rows.some(([, , shown = ""]) => shown.includes(`\`${words}\``)), words);
    assert.ok(said.includes(words), `${words} is not in ${said}`);
  }
});

Deno.test("what is said to be hidden in the archive is what the recorder hides", () => {
  const record = Deno.readTextFileSync(`${project}/tests/mac/record`);
  assert.deepEqual([...record.matchAll(/\bhide "([^"]+)"/g)].map(([, what]) => what), [
    "the variables of the session",
    "letters and digits in the arguments of all processes, by x",
    "the addresses of this Mac",
  ]);
  assert.doesNotMatch(record, /\buname (-\w*[an])/);
  assert.match(
    PAGE,
    /Not in it: what programs were called with, the variables of [^]*name of the Mac and its addresses/,
  );
});

Deno.test("line 4 finds the binary of the Mac at hand among those of all Macs", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    const [, words = ""] = /(G=".*?"); tests/.exec(TYPED.get(4) ?? "") ?? [];
    const found: string[] = [];
    for (const machine of ["arm64", "x86_64"]) {
      await Deno.writeTextFile(`${dir}/uname`, `#!/bin/sh\necho ${machine}\n`, { mode: 0o755 });
      const PATH = `${dir}:${Deno.env.get("PATH")}`;
      found.push((await run(["sh", "-c", `${words}; echo "$G"`], { PATH, PWD: project })).said.trim());
    }
    assert.deepEqual(found, MAC_TARGETS.map((target) => `${project}/dist/lima-guard-${target}`));
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test({
  name: `line 2 says on another system that this is no Mac${
    Deno.build.os === "darwin" ? ": needs another system" : ""
  }`,
  ignore: Deno.build.os === "darwin",
  async fn() {
    const command = (TYPED.get(2) ?? "").replace("sudo -v && ", "");
    const { code, said } = await run(["sh", "-c", command]);
    assert.match(said, /^record: this is no Mac: \S+sw_vers cannot be run\n$/);
    assert.equal(code, 1);
  },
});
