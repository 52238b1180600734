/** The commands that lima-guard prints: they name their instance in full, and do what the line beside them promises. */

import assert from "node:assert/strict";
import { startAgent } from "./helpers/agents.ts";
import { denoFlags, runGuard } from "./helpers/guard.ts";
import { tempLimaHome } from "./helpers/home.ts";
import { project } from "./helpers/paths.ts";
import { test } from "./helpers/pre.ts";

test("a name with a letter too few gets the nearest one of this LIMA_HOME, as a command", async ({ home }) => {
  home.instance("default");
  const { status, stdout } = await runGuard(home, ["--pre", "defalt"]);
  assert.equal(status, 66);
  const command = `lima-guard --pre --lima-home ${home.lima} default`;
  assert.ok(stdout.includes(`did you mean default? ${command};`), stdout);
  const again = await runGuard(home, command.split(" ").slice(1), { env: { LIMA_HOME: "" } });
  assert.match(again.stdout, /^default: clear/);
});

/** Types a printed line into a shell, where LIMA_HOME is another one. */
async function type(line: string, lima: string, root: string) {
  const bin = `${root}/bin-to-type`;
  Deno.mkdirSync(bin, { recursive: true });
  const flags = denoFlags().map((flag) => `'${flag}'`).join(" ");
  const script = `#!/bin/sh\nexec '${Deno.execPath()}' run -A ${flags} '${project}/lima_guard.ts' "$@"\n`;
  Deno.writeTextFileSync(`${bin}/lima-guard`, script, { mode: 0o755 });
  const env = { LIMA_HOME: lima, PATH: `${bin}:${Deno.env.get("PATH")}` };
  const { code, stdout, stderr } = await new Deno.Command("sh", { args: ["-c", line], env, cwd: root }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

test("a booting instance: the command that ends it ends it, and not the one of that name in LIMA_HOME", async (world) => {
  await using other = await tempLimaHome();
  const healthy = other.instance("k3s");
  await using running = await startAgent(healthy);
  const { home } = world;
  const booting = home.instance("vm1");
  await using agent = await startAgent(booting);
  Deno.removeSync(booting.path("ha.sock"));
  const report = (await runGuard(home, ["--pre", "--json", "vm1"])).json().instances[0];
  assert.equal(report.state, "booting");
  const [, line = ""] = /to end it: (.*)$/.exec(report.blockers[0].hint) ?? [];
  assert.equal(line, `lima-guard --stop --lima-home ${home.lima} vm1`);
  const twin = other.instance("vm1");
  await using alsoRunning = await startAgent(twin);
  const typed = await type(line, other.lima, home.root);
  assert.equal(typed.code, 0, typed.text);
  assert.match(typed.text, /^vm1: stopped /m);
  assert.ok(!home.processes().some((row) => row.includes(`${booting.dir}/`)), home.processes().join("\n"));
  for (const instance of [healthy, twin]) {
    const seen = await runGuard(other, ["--status", "--json", instance.name]);
    assert.equal(seen.json().instances[0].state, "running");
  }
  void [running, agent, alsoRunning];
});
