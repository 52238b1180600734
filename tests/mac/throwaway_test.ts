import assert from "node:assert/strict";
import { parse } from "npm:plist@5.0.0";
import { runGuard } from "../helpers/guard.ts";
import { tempLimaHome } from "../helpers/home.ts";
import { eventually, killChild, ps } from "../helpers/processes.ts";
import { decodePlist, parseInstallArgs, type PlistReader, readJob, readPlist } from "../../install.ts";
import { parseCommandLine } from "../../lima_guard.ts";
import { commandsOf, plistOf, writeThrowaway } from "./throwaway.ts";

Deno.test("the throw-away instance looks like a host agent, and lima-guard stops it in its time", async () => {
  await using home = await tempLimaHome();
  const made = writeThrowaway(home.root, "d", 1);
  const args = ["start", "d", "--foreground"];
  const child = new Deno.Command(made.limactl, { args, cwd: made.dir, env: home.mark, stdin: "null" }).spawn();
  const ended = child.status;
  try {
    const pid = await eventually(() => Number(Deno.readTextFileSync(`${made.dir}/vz.pid`)) || assert.fail());
    assert.equal(pid, child.pid);
    const words = `${made.limactl} hostagent --pidfile ${made.dir}/ha.pid --socket ${made.dir}/ha.sock d`;
    assert.equal(ps(pid)?.command, words);
    const stopped = await runGuard(home, ["--stop", "d", "--timeout", "20"]);
    assert.equal(stopped.status, 0, stopped.stdout + stopped.stderr);
    assert.equal((await ended).code, 0);
  } finally {
    killChild(child);
    await ended;
  }
});

for (const domain of ["agent", "daemon"] as const) {
  Deno.test(`install.ts reads the ${domain}'s throw-away plist as one of Lima's`, async () => {
    await using home = await tempLimaHome();
    const made = writeThrowaway(home.root, "d", 1);
    const text = plistOf(made, domain, `io.lima-vm.${domain === "agent" ? "autostart" : "daemon"}.d`, "ci");
    const plist = readPlist(decodePlist(new TextEncoder().encode(text), "x.plist"), parse as PlistReader);
    const job = readJob(plist, "d");
    assert.deepEqual(job.command.slice(1), ["start", "d", "--foreground"]);
    assert.equal(plist.value["UserName"], domain === "daemon" ? "ci" : undefined);
  });
}

Deno.test("lima-guard understands every command of the live tests", () => {
  const made = { lima: "/l", name: "d", dir: "/l/d", limactl: "/limactl" };
  for (const [what, args] of Object.entries(commandsOf(made, "/g"))) {
    const asked = parseCommandLine(args);
    assert.ok(!("usage" in asked) && !("print" in asked), `${what}: ${JSON.stringify(asked)}`);
    if (!("install" in asked)) continue;
    const parsed = parseInstallArgs(asked.install);
    assert.ok(
      !("usage" in parsed) && !("print" in parsed && typeof parsed.print === "string"),
      `${what}: ${JSON.stringify(parsed)}`,
    );
  }
});
