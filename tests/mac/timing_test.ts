/** The reader of what a job has timed, and the load beside it. */

import assert from "node:assert/strict";
import { eventually, isAlive } from "../helpers/processes.ts";
import { project } from "../helpers/paths.ts";
import { takeCores, timesOf } from "./timing.ts";

Deno.test("timesOf() gives median and worst of each, with a point or a comma, and says what was not timed", () => {
  const text = "ps 0.10\nps 0,30\nps 0.20\nssh 5.25\nsync 0.00\nps cut of";
  assert.deepEqual(timesOf(text), {
    text: "ps 0.2/0.3 s of 3, print not timed, ssh 5.25/5.25 s of 1, sync 0/0 s of 1",
    worst: 5.25,
  });
  assert.deepEqual(timesOf(""), { text: "ps not timed, print not timed, ssh not timed, sync not timed", worst: 0 });
});

Deno.test("takeCores() starts a program for each core, and none of them stays", async () => {
  const hogs = async () => {
    const { stdout } = await new Deno.Command("ps", { args: ["-A", "-o", "pid=,ppid=,stat=,args="], cwd: project })
      .output();
    const rows = new TextDecoder().decode(stdout).split("\n").map((row) => row.trim().split(/ +/));
    return rows.filter(([, ppid, stat = ""]) => Number(ppid) === Deno.pid && !stat.startsWith("Z"))
      .filter((row) => row.includes("eval")).map(([pid]) => Number(pid));
  };
  const pids: number[] = [];
  {
    using _load = takeCores(4096);
    await eventually(async () => assert.equal((await hogs()).length, navigator.hardwareConcurrency));
    pids.push(...await hogs());
  }
  await eventually(() => assert.deepEqual(pids.filter(isAlive), []));
});
