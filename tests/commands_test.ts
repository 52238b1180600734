/**
 * The commands that lima-guard prints: typed in a shell of the person they are for, each works, and touches nothing but
 * the instance that it was printed for. The rows are in tests/commands/.
 */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { Desk, owner } from "./commands/desk.ts";
import { rows as ofJobs } from "./commands/of_jobs.ts";
import { rows as ofPlaces } from "./commands/of_places.ts";
import { rows as ofProcesses } from "./commands/of_processes.ts";
import { rows as ofStops } from "./commands/of_stops.ts";
import { forRoot, holds, type Row } from "./commands/rows.ts";
import { commandsIn } from "./commands/hints.ts";
import { unmet } from "./commands/reasons.ts";
import { NO_ORDINARY_USER } from "./helpers/mod.ts";

let desk: Desk;
Deno.test.beforeAll(async () => {
  desk = await Desk.open();
});
Deno.test.afterAll(async () => {
  await desk[Symbol.asyncDispose]();
});

const FOLDERS = ["/usr/bin", "/usr/sbin"];
const isInstalled = (program: string) => FOLDERS.some((folder) => existsSync(`${folder}/${program}`));

/** Why a row cannot be held here; undefined where it can. */
function whyNot({ by, types, whyNot }: Row): string | undefined {
  const commands = Object.keys(types);
  const missing = ["sudo", "lsof"].find((program) =>
    commands.some((command) => command.startsWith(`${program} `)) && !isInstalled(program)
  );
  if (missing !== undefined) return `${missing} is not installed`;
  if (owner === null && (by === "root" || commands.some((command) => /^sudo /.test(command)))) return NO_ORDINARY_USER;
  const installs = commands.some((command) => command.includes("--install"));
  return installs && Deno.build.os === "darwin" ? "it would change what launchd of this Mac knows" : whyNot;
}

const rows = [...ofProcesses, ...ofPlaces, ...ofJobs, ...ofStops].flatMap(([title, row]): [string, Row][] =>
  row.isRootsToo ? [[title, row], [`${title}, for root`, forRoot(row)]] : [[title, row]]
);
for (const [title, row] of rows) {
  const why = whyNot(row);
  Deno.test({
    name: why === undefined ? title : `${title} (skipped: ${why})`,
    ignore: why !== undefined,
    fn: () => holds(desk, row),
  });
}

/** Typed by tests/start_notes_test.ts, with a real ssh; plutil is a Mac's. */
const ELSEWHERE = /sshExitCommand|plistCommand/;
Deno.test({
  name: "every call in lima_guard.ts that makes a command has a row in which it is typed",
  ignore: rows.some(([, row]) => whyNot(row) !== undefined),
  fn: () => assert.deepEqual(desk.watched.untyped().filter((call) => !ELSEWHERE.test(call)), []),
});

Deno.test({
  name:
    "every reason that has a row in tests/commands/reasons.ts was given, and a command beside it asks for what is missing",
  ignore: rows.some(([, row]) => whyNot(row) !== undefined),
  fn: () => assert.deepEqual(unmet(), []),
});

Deno.test("a hint is taken apart as a shell reads it", () => {
  const hint =
    `it is left alone; to end it: sudo -H -u zoe lima-guard --stop --lima-home '/a; b'\\''s && c: d, or e' x`;
  assert.deepEqual(commandsIn(hint), [hint.slice(hint.indexOf("sudo"))]);
  assert.deepEqual(commandsIn("did you mean k3s? lima-guard --pre k3s; ls -la /x"), [
    "lima-guard --pre k3s",
    "ls -la /x",
  ]);
  assert.deepEqual(commandsIn("lima-guard --stop x && launchctl kickstart gui/501/x"), [
    "lima-guard --stop x",
    "launchctl kickstart gui/501/x",
  ]);
  assert.deepEqual(commandsIn("lima-guard --stop x, or take the disk out of lima.yaml"), ["lima-guard --stop x"]);
  assert.throws(() => commandsIn("reinstall everything"), /neither a command nor a known sentence/);
});
