/**
 * The commands that lima-guard prints, typed: it is run in a LIMA_HOME that a shell has to quote, all its hints are
 * collected, taken apart, and each command is typed by the person it is for, in whose shell LIMA_HOME is another one
 * that has an instance of the same name: the twin.
 */

import assert from "node:assert/strict";
import type { Twist } from "../helpers/guard_with.ts";
import {
  type Bystander,
  type Guard,
  type GuardResult,
  type Home,
  type Instance,
  killChild,
  spawnGuard,
  startBystander,
  tempLimaHome,
  within,
} from "../helpers/mod.ts";
import { denoDir } from "../launchd/jobs.ts";
import { type Launchd, smallLaunchd } from "../launchd/launchd.ts";
import { asOwner, Desk, give, OWN_UID, owner } from "./desk.ts";
import { bare, commandsIn, cut, unquoted } from "./hints.ts";
import { assertAsked, type Reason } from "./reasons.ts";

/** A blank, quotes, and what a shell would do something with; a socket's path has 104 bytes on macOS. */
const NAME = "a b'ü;&$HOME";

/** Where a row takes place. */
export interface Scene {
  readonly home: Home;
  readonly k3s: Instance;
  readonly bystander: Bystander;
  readonly desk: Desk;
  readonly launchd: Launchd | undefined;
  /** What stands in the table for a number or a path. */
  readonly words: Map<string, string>;
  /** Is ended when the row is over. */
  use<T extends AsyncDisposable | Disposable>(thing: T): T;
}

export interface Row {
  /** Each is a run of lima-guard, all of whose hints are typed. */
  readonly runs: readonly string[];
  /** The instance is in ~/.lima, and no LIMA_HOME is set for lima-guard. */
  readonly isOrdinaryHome?: true;
  /** Who runs it, and types what it prints; the owner unless said. */
  readonly by?: "root";
  /** Root's `--status` prints the same, with sudo where something is to be done. */
  readonly isRootsToo?: true;
  /** An ordinary user of the tests has no password for sudo: root types what an administrator would. */
  readonly isTypedBy?: "root";
  /** Each `--pre` and `--stop` is run dry before; not where that takes long. */
  readonly isDryToo?: false;
  /** In the place of the desk's copy of lima_guard.ts. */
  readonly script?: (scene: Scene) => string;
  readonly twist?: (scene: Scene) => Twist;
  readonly env?: (scene: Scene) => Record<string, string>;
  readonly hasLaunchd?: true;
  /** The name of LIMA_HOME's folder, where it may not have a blank. */
  readonly folder?: string;
  /** Why it cannot be held here. */
  readonly whyNot?: string | undefined;
  readonly prepare?: (scene: Scene) => unknown;
  /** While each of the runs does its work. */
  readonly meanwhile?: (scene: Scene, guard: Guard) => unknown;
  /** Just the commands that are printed, in the order in which they are typed, with the statuses that are right. */
  readonly types: Readonly<Record<string, number | readonly number[]>>;
  readonly before?: (scene: Scene, command: string) => unknown;
  /** What has come true then. */
  readonly then?: (scene: Scene) => unknown;
}

/** Runs lima-guard as the person of the row. */
export async function runAs(scene: Scene, run: string, row: Partial<Row> = {}) {
  const { home, launchd, desk } = scene;
  const [args = "", command] = run.split(" -- ");
  const json = args.startsWith("--run") ? [] : ["--json"];
  const words = [...args.split(" "), ...json, ...command === undefined ? [] : ["--", ...command.split(" ")]];
  const user = row.by === "root" ? null : owner;
  await using guard = spawnGuard(home, words, {
    script: row.script?.(scene) ?? desk.watched.script,
    user,
    cwd: "/",
    env: {
      ...user === null ? {} : { DENO_DIR: `${desk.folder}/deno` },
      ...launchd ? { PATH: `${launchd.bin}:${home.env["PATH"]}` } : {},
      GUARD_WITH: JSON.stringify(row.twist?.(scene) ?? {}),
      ...row.isOrdinaryHome ? { LIMA_HOME: "" } : {},
      ...row.env?.(scene),
    },
  });
  await row.meanwhile?.(scene, guard);
  return await guard.result();
}

/** The same for root, who only looks at another user's instance. */
export function forRoot(row: Row): Row {
  const sudo = (command: string) => command.replace(/^(?=lima-guard |kill )/, "sudo -H -u OWNER ");
  const types = Object.fromEntries(Object.entries(row.types).map(([command, status]) => [sudo(command), status]));
  return { ...row, by: "root", runs: ["--status k3s"], types };
}

interface Hinted {
  readonly blockers: readonly { readonly hint?: string }[];
  readonly notes: readonly { readonly hint?: string }[];
}

/** All hints of a run: those of its document, and those of its log. */
function hintsOf({ stdout, stderr, json }: GuardResult): string[] {
  const { instances, error } = stdout.startsWith("{") ? json() : { instances: [] };
  const diagnostics = (instances as Hinted[]).flatMap(({ blockers, notes }) => [...blockers, ...notes]);
  const logged = [...`${stdout}\n${stderr}`.matchAll(/\(hint: (.*)\)$/gm)].map(([, hint]) => hint);
  return [...diagnostics.map(({ hint }) => hint), error?.hint, ...logged].filter((hint) => typeof hint === "string");
}

/** A command as the table has it: without quotes, and with a word for everything that is another one each time. */
function inTable({ home, k3s, words }: Scene, command: string): string {
  const known: [string, string][] = [
    ...words,
    [k3s.dir, "DIR"],
    [home.lima, "HOME"],
    [home.root, "ROOT"],
    ...owner ? [[`-u ${owner.name}`, "-u OWNER"] as [string, string]] : [],
  ];
  const plain = cut(command).map(unquoted).join(" ");
  return known.reduce((text, [value, word]) => {
    return /^\d+$/.test(value)
      ? text.replaceAll(new RegExp(`\\b${value}\\b`, "g"), word)
      : text.replaceAll(value, word);
  }, plain);
}

/** Types a command, as it was printed, into a shell. */
async function type(scene: Scene, command: string, row: Row): Promise<{ code: number; text: string }> {
  const { home, launchd, desk } = scene;
  // An ordinary user of the tests has no password for sudo; what it changes is the same.
  const byRoot = (row.isTypedBy ?? row.by) === "root" || owner === null || /^sudo (?!-H)/.test(command);
  // What the person is to put there.
  const filledIn = command.replace(/ -- COMMAND$/, " -- true").replace(/ -R USER /, ` -R ${owner?.name} `);
  const path = [`${desk.folder}/bin`, launchd?.bin, desk.twin.bin, "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"];
  const child = new Deno.Command("sh", {
    args: ["-c", filledIn],
    clearEnv: true,
    env: {
      ...home.mark,
      PATH: path.filter(Boolean).join(":"),
      HOME: home.user,
      LIMA_HOME: desk.twin.lima,
      NO_COLOR: "1",
      DENO_NO_UPDATE_CHECK: "1",
      ...byRoot ? { DENO_DIR: denoDir() } : {},
    },
    cwd: desk.twin.lima,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...byRoot ? {} : asOwner,
  }).spawn();
  const ended = within(child.output(), 60_000, () => `${command} has not ended`);
  const { code, stdout, stderr } = await ended.catch((error) => {
    killChild(child);
    throw error;
  });
  return { code, text: [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("") };
}

/** What holds of every command, whatever it is for. */
function assertUnderstood(command: string, { code, text }: { code: number; text: string }): void {
  const said = `${command}\nended with ${code}:\n${text}`;
  assert.ok(![126, 127].includes(code) && !/syntax error|unterminated|not found$/im.test(text), said);
  const words = bare(cut(command)).map(unquoted);
  const [program] = words;
  const isUsage = program === "lima-guard" ? code === 64 : /^usage|(unknown|invalid|unrecognized) \w+/im.test(text);
  assert.equal(isUsage, false, said);
  // Deno's own words: lima-guard has not even begun, or was broken off.
  assert.ok(program !== "lima-guard" || !/^error: /m.test(text), said);
  const last = words.at(-1)!;
  if (program === "ls" && code === 0) assert.ok(text.includes(words[1] === "-ld" ? last : " ..\n"), said);
  if (program === "ps" && words[1] === "-ww" && code === 0) assert.match(text, /^ *\d+ /m, said);
  if (program === "lsof" && code === 0) assert.match(text, /^COMMAND.*\n\S+ +\d+ /, said);
  if (program === "tail") assert.notEqual(text, "", said);
}

/** Prepares, runs lima-guard, and types all that it has printed. */
export async function holds(desk: Desk, row: Row): Promise<void> {
  await using things = new AsyncDisposableStack();
  const home = things.use(await tempLimaHome({ name: row.folder ?? NAME }));
  const bystander = things.use(await startBystander(home, asOwner));
  const user = owner === null ? {} : { user: { ...owner, groups: [owner.gid] } };
  const launchd = row.hasLaunchd ? things.use(smallLaunchd(home, user)) : undefined;
  if (launchd && owner) Deno.writeTextFileSync(`${home.root}/launchd/state/sessions/${owner.uid}`, "");
  const words = new Map([[String(OWN_UID), "UID"]]);
  const scene: Scene = {
    home,
    k3s: home.instance("k3s"),
    bystander,
    desk,
    launchd,
    words,
    use: (it) => things.use(it),
  };
  // The ordinary place has an instance of that name too.
  Deno.symlinkSync(row.isOrdinaryHome ? home.lima : desk.twin.lima, `${home.user}/.lima`);
  give(home);
  await row.prepare?.(scene);
  const printed = new Map<string, string>();
  const dry = row.runs.filter((run) => /^--(pre|stop) /.test(run) && row.isDryToo !== false).map((run) =>
    `${run} --dry-run`
  );
  for (const run of [...dry, ...row.runs]) {
    const result = await runAs(scene, run, row);
    const { instances } = result.stdout.startsWith("{") ? result.json() : { instances: [] };
    for (const reason of (instances as { blockers: Reason[] }[]).flatMap((i) => i.blockers)) assertAsked(reason);
    for (const command of hintsOf(result).flatMap(commandsIn)) printed.set(inTable(scene, command), command);
  }
  assert.deepEqual([...printed.keys()].sort(), Object.keys(row.types).sort());
  for (const [command, statuses] of Object.entries(row.types)) {
    await row.before?.(scene, command);
    desk.watched.typed.add(printed.get(command)!);
    const typed = await type(scene, printed.get(command)!, row);
    assertUnderstood(printed.get(command)!, typed);
    assert.ok([statuses].flat().includes(typed.code), `${command}: ${typed.code}\n${typed.text}`);
    desk.assertTwinUntouched();
  }
  await row.then?.(scene);
  bystander.assertAlive();
  desk.assertTwinUntouched();
}
