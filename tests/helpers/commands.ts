/**
 * The commands that lima-guard prints, typed: it is run in a LIMA_HOME that a shell has to quote, all its hints are
 * collected, taken apart, and each command is typed by the person it is for, in whose shell LIMA_HOME is another one
 * that has an instance of the same name: the twin.
 */

import assert from "node:assert/strict";
import { denoDir } from "../launchd/jobs.ts";
import { type Launchd, smallLaunchd } from "../launchd/launchd.ts";
import { type Agent, startAgent } from "./agents.ts";
import { denoFlags, type Guard, type GuardResult, spawnGuard } from "./guard.ts";
import type { Twist } from "./guard_with.ts";
import { type Home, type Instance, tempLimaHome } from "./home.ts";
import { project } from "./paths.ts";
import { everything } from "./pre.ts";
import { type Bystander, killChild, startBystander, within } from "./processes.ts";
import { ordinaryUser } from "./user.ts";

/** A blank, quotes, and what a shell would do something with; a socket's path has 104 bytes on macOS. */
const NAME = "a b'ü;&$HOME";

/** Parts of a hint that are no commands: for the person to read. */
const PROSE = [
  /^--lima-home DIR names (?:another LIMA_HOME|it)$/,
  /^it is left alone$/,
  /^limactl start would silently create a new VM of this name$/,
  /^move (?:it out of \/|it out of the folder$|LIMA_HOME to a shorter path$)/,
  /^did you mean --[a-z-]+\?$/,
];
/** What stands before a command and says what it is for, and what stands behind one. */
const BEFORE = /^.*?[:?] (?=\S)/;
const BEHIND = /, or .*$/;
const PROGRAMS = /^(?:lima-guard|limactl|launchctl|ls|ps|lsof|tail|kill|chmod|chown|rm)$/;

/** A text of a shell, cut at the blanks and the `;` and `&&` that no quotes hold. Words still have their quotes. */
function cut(text: string): string[] {
  return text.match(/(?:'[^']*'|\\.|&(?!&)|[^\s;&'\\])+|;|&&/gs) ?? [];
}

export function unquoted(word: string): string {
  return word.replaceAll(/'([^']*)'|\\(.)/gs, (_, quoted = "", escaped = "") => quoted + escaped);
}

/** The words of a command without sudo and without what is set for it. */
function bare(words: readonly string[]): readonly string[] {
  const [first = "", ...rest] = words;
  if (first === "sudo") return bare(rest[0] === "-H" ? rest.slice(3) : rest);
  return /^\w+=/.test(first) ? bare(rest) : words;
}

/** The commands of a hint, as they stand there. What is neither one nor a known sentence is an error. */
export function commandsIn(hint: string): string[] {
  // A path in a sentence is not quoted.
  if (PROSE.some((known) => known.test(hint))) return [];
  const parts: string[][] = [[]];
  for (const word of cut(hint)) {
    if (word === ";" || word === "&&") parts.push([]);
    else parts.at(-1)!.push(word);
  }
  return parts.flatMap((words) => {
    if (PROSE.some((known) => known.test(words.join(" ")))) return [];
    const text = words.join(" ");
    // A sentence has no quotes: what it says ends before the first one.
    const at = text.indexOf("'");
    const said = at < 0 ? text : text.slice(0, at);
    const before = BEFORE.exec(said)?.[0] ?? "";
    const command = text.slice(before.length).replace(BEHIND, "");
    if (PROSE.some((known) => known.test(command))) return [];
    assert.match(bare(cut(command))[0] ?? "", PROGRAMS, `neither a command nor a known sentence: ${text}`);
    return [command];
  });
}

// ── the calls in lima_guard.ts that make a command ──

/** A copy of lima_guard.ts, twisted as helpers/guard_with.ts does it, that notes which call has made a command. */
export class Watched {
  readonly script: string;
  /** The lines of lima_guard.ts in which a command is made. */
  readonly calls = new Map<number, string>();
  /** Every command that was typed, as it was printed. */
  readonly typed = new Set<string>();
  readonly #notes: string;

  constructor(folder: string) {
    const lines = Deno.readTextFileSync(`${project}/lima_guard.ts`).split("\n");
    const begin = lines.findIndex((line) => /^\/\/ ─+ commands to type ─+$/.test(line));
    const end = lines.findIndex((line, at) => at > begin && /^\/\/ ─{9}/.test(line));
    assert.ok(begin > 0 && end > begin, "lima_guard.ts has no chapter of commands");
    const makers = lines.slice(begin, end).flatMap((line) => /^function (\w+)\(/.exec(line)?.[1] ?? []);
    const call = new RegExp(`\\b(${makers.join("|")})\\(`, "g");
    const copy = lines.map((line, at) => {
      if (at >= begin && at < end || /^\s*(\/\/|\*)/.test(line) || line.search(call) < 0) return line;
      this.calls.set(at + 1, line.trim());
      return line.replaceAll(call, `globalThis.noted(${at + 1}, $1)(`);
    });
    this.#notes = `${folder}/made`;
    this.script = `${folder}/watched.ts`;
    const note = `globalThis.noted = (line, make) => (...args) => {
  const made = make(...args);
  Deno.writeTextFileSync(${JSON.stringify(this.#notes)}, JSON.stringify([line, made]) + "\\n", { append: true });
  return made;
};\n`;
    Deno.writeTextFileSync(`${folder}/guard.ts`, `${copy.join("\n")}\n${note}`);
    const twisted = Deno.readTextFileSync(`${project}/tests/helpers/guard_with.ts`)
      .replace('"../../lima_guard.ts"', '"./guard.ts"')
      .replace('"./processes.ts"', `"${project}/tests/helpers/processes.ts"`);
    Deno.writeTextFileSync(this.script, twisted);
    Deno.writeTextFileSync(this.#notes, "");
    Deno.chmodSync(this.#notes, 0o666);
  }

  /** The calls none of whose commands has been typed. */
  untyped(): string[] {
    const lines = Deno.readTextFileSync(this.#notes).split("\n").filter((line) => line !== "");
    const made = lines.map((line) => JSON.parse(line) as [number, string]);
    const met = made.filter(([, text]) => commandsIn(text).every((command) => this.typed.has(command)));
    const calls = new Set(met.map(([line]) => line));
    return [...this.calls].filter(([line]) => !calls.has(line)).map(([line, text]) => `${line}: ${text}`);
  }
}

// ── the persons, their shell, and the twin ──

/** Who owns the instances: an ordinary user, beside root where the tests run as root. */
export const owner = ordinaryUser();
/** For startAgent, startBystander and Deno.Command. */
export const asOwner = owner === null ? {} : { uid: owner.uid, gid: owner.gid };
const OWN_UID = owner?.uid ?? Deno.uid()!;

/** What all rows share: the twin, which runs and must notice nothing, the programs that are typed, the notes. */
export class Desk implements AsyncDisposable {
  readonly folder: string;
  readonly watched: Watched;
  readonly #things = new AsyncDisposableStack();
  readonly #before: Record<string, string>;

  private constructor(readonly twin: Home, readonly agent: Agent, readonly bystander: Bystander) {
    this.folder = Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-typed-" });
    this.#things.use(twin);
    this.#things.defer(() => Deno.removeSync(this.folder, { recursive: true }));
    this.#things.use(agent);
    this.#things.use(bystander);
    for (const dir of [this.folder, `${this.folder}/deno`, `${this.folder}/bin`]) {
      Deno.mkdirSync(dir, { recursive: true });
      Deno.chmodSync(dir, dir.endsWith("/deno") ? 0o777 : 0o755);
    }
    Deno.copyFileSync(`${project}/lima_guard.ts`, `${this.folder}/lima_guard.ts`);
    this.watched = new Watched(this.folder);
    this.#programs();
    this.#before = this.#seen();
  }

  static async open(): Promise<Desk> {
    const twin = await tempLimaHome({ name: "twin" });
    for (const name of ["default", "k3s-2"]) twin.instance(name);
    const vm = twin.instance("k3s");
    if (owner) twin.giveTo(owner);
    const agent = await startAgent(vm, asOwner);
    return new Desk(twin, agent, await startBystander(twin, asOwner));
  }

  #programs(): void {
    const write = (name: string, text: string) =>
      Deno.writeTextFileSync(`${this.folder}/bin/${name}`, `#!/bin/sh\n${text}`, { mode: 0o755 });
    const flags = denoFlags().map((flag) => `'${flag}'`).join(" ");
    write(
      "lima-guard",
      `[ "$(id -u)" = 0 ] || export DENO_DIR='${this.folder}/deno'
# Alone it needs no packages of install.ts, which an ordinary user would have to get first.
file='${this.folder}/lima_guard.ts'
case " $* " in *" --install "*) file='${project}/lima_guard.ts' ;; esac
exec '${Deno.execPath()}' run -A ${flags} "$file" "$@"\n`,
    );
    // The real one, which changes the user. Debian gives it a PATH of its own; a Mac's keeps the caller's.
    write(
      "sudo",
      `as=; [ "$1" != -H ] || { as="-H -u $3"; shift 3; }
exec /usr/bin/sudo -n $as env PATH="$PATH" STANDIN_HOME="$STANDIN_HOME" NO_COLOR=1 DENO_NO_UPDATE_CHECK=1 "$@"\n`,
    );
  }

  #seen(): Record<string, string> {
    return { ...everything(this.twin), processes: this.twin.processes().sort().join("\n") };
  }

  /** Byte for byte and process for process. */
  assertTwinUntouched(): void {
    assert.deepEqual(this.#seen(), this.#before, "the instance of the same name in another LIMA_HOME was touched");
    this.bystander.assertAlive();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#things.disposeAsync();
  }
}

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
  /** The instance is in ~/.lima, and no LIMA_HOME is set: neither for lima-guard nor in the shell. */
  readonly isOrdinaryHome?: true;
  /** Who runs it, and types what it prints; the owner unless said. */
  readonly by?: "root";
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

interface Told {
  readonly blockers: readonly { readonly hint?: string }[];
  readonly notes: readonly { readonly hint?: string }[];
}

/** All hints of a run: those of its document, and those of its log. */
function hintsOf({ stdout, stderr, json }: GuardResult): string[] {
  const { instances, error } = stdout.startsWith("{") ? json() : { instances: [] };
  const told = (instances as Told[]).flatMap(({ blockers, notes }) => [...blockers, ...notes]);
  const logged = [...`${stdout}\n${stderr}`.matchAll(/\(hint: (.*)\)$/gm)].map(([, hint]) => hint);
  return [...told.map(({ hint }) => hint), error?.hint, ...logged].filter((hint) => typeof hint === "string");
}

/** A command as it stands in the table: without quotes, and with a word for everything that is another one each time. */
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
      ...row.isOrdinaryHome ? {} : { LIMA_HOME: desk.twin.lima },
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
  if (owner) home.giveTo(owner);
  await row.prepare?.(scene);
  const printed = new Map<string, string>();
  const dry = row.runs.filter((run) => /^--(pre|stop) /.test(run) && row.isDryToo !== false).map((run) =>
    `${run} --dry-run`
  );
  for (const run of [...dry, ...row.runs]) {
    const result = await runAs(scene, run, row);
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
