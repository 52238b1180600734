/** One throw-away job of launchd, and everything that takes it away again. */

import assert from "node:assert/strict";
import { readPrint } from "../../lima_guard.ts";
import { eventually, isAlive } from "../helpers/processes.ts";
import { type Ground, note, type RunOptions, type Said, type Who } from "./ground.ts";
import type { Domain } from "./launchd.ts";
import { commandsOf, plistOf, type Throwaway, writeBare, writeThrowaway } from "./throwaway.ts";

/** Every instance begins so: what a crashed run has left is found by it. */
const PREFIX = "lgtest";
const NAME = `${PREFIX}${Deno.pid}`;
const NOT_LOADED = 113;

export interface LiveOptions {
  readonly domain: Domain;
  /** Without a host agent: nothing but a process. */
  readonly isBare?: boolean;
  /** Whose instance it is. */
  readonly owner?: "user" | "other";
}

export class Live implements AsyncDisposable {
  /** The folders of every instance that this process has made. */
  static readonly roots: string[] = [];
  readonly name = NAME;
  readonly label: string;
  readonly domainTarget: string;
  readonly target: string;
  readonly plist: string;
  readonly guardDir: string;
  readonly root: string;
  readonly made: Throwaway;
  readonly text: string;

  private constructor(readonly ground: Ground, readonly options: LiveOptions) {
    const { domain, owner = "user", isBare = false } = options;
    const { user, other } = ground;
    const isAgent = domain === "agent";
    this.label = `io.lima-vm.${isAgent ? "autostart" : "daemon"}.${this.name}`;
    this.domainTarget = domainOf(ground, domain);
    this.target = `${this.domainTarget}/${this.label}`;
    this.plist = `${isAgent ? ground.agents : ground.daemons}/${this.label}.plist`;
    this.root = ground.makeFolder();
    Live.roots.push(this.root);
    this.guardDir = `${isAgent ? ground.home : ground.library}/lima-guard-${this.name}`;
    this.made = isBare ? writeBare(this.root, this.name) : writeThrowaway(this.root, this.name, 1);
    this.text = plistOf(this.made, domain, this.label, owner === "other" && "name" in other ? other.name : user.name);
  }

  /** Writes the instance and its plist. */
  static async make(ground: Ground, options: LiveOptions): Promise<Live> {
    const live = new Live(ground, options);
    const { uid } = options.owner === "other" && "name" in ground.other ? ground.other : ground.user;
    Deno.writeTextFileSync(`${live.root}/plist`, live.text);
    // Only root can give a file away; an agent's files have been the user's from the beginning on a Mac.
    if (options.domain === "daemon" || Deno.uid() !== ground.user.uid) {
      await live.must(["chown", "-R", String(uid), live.root], "root");
    }
    const ids = options.domain === "daemon" ? ["-o", "0", "-g", "0"] : [];
    await live.must(["install", "-m", "644", ...ids, `${live.root}/plist`, live.plist], live.keeper);
    return live;
  }

  /** Whose commands launchd obeys for this job. */
  get keeper(): Who {
    return this.options.domain === "daemon" ? "root" : "user";
  }

  asKeeper(...argv: string[]): Promise<Said> {
    return this.ground.run(argv, { as: this.keeper });
  }

  async must(argv: readonly string[], as: Who): Promise<void> {
    const { code, text } = await this.ground.run(argv, { as });
    assert.equal(code, 0, `${argv.join(" ")}: ${text}`);
  }

  load(): Promise<void> {
    return this.must(["launchctl", "bootstrap", this.domainTarget, this.plist], this.keeper);
  }

  /** One of the commands of throwaway.ts, with the usual lima-guard or another one. */
  guard(what: keyof ReturnType<typeof commandsOf>, more: RunOptions & { readonly by?: string } = {}): Promise<Said> {
    return this.ground.run([more.by ?? this.ground.guard, ...commandsOf(this.made, this.guardDir)[what]], more);
  }

  /** The same, which must succeed. */
  async well(...args: Parameters<Live["guard"]>): Promise<string> {
    const { code, text } = await this.guard(...args);
    assert.equal(code, 0, text);
    return text;
  }

  print(): Promise<Said> {
    return this.ground.run(["launchctl", "print", this.target]);
  }

  async printed() {
    const { text } = await this.print();
    return readPrint(text);
  }

  pid(): Promise<number> {
    return eventually(async () => {
      const { text } = await this.print();
      const { pid } = readPrint(text);
      assert.ok(pid, text);
      return pid;
    }, { withinMs: 30_000 });
  }

  async idle(): Promise<void> {
    await eventually(async () => assert.equal((await this.printed()).pid, undefined), { withinMs: 30_000 });
  }

  /** What its limactl has become, once it runs. */
  agent(): Promise<number> {
    return eventually(() => {
      const pid = Number(Deno.readTextFileSync(`${this.made.dir}/ha.pid`));
      assert.ok(isAlive(pid));
      return pid;
    }, { withinMs: 30_000 });
  }

  linger(seconds: number): void {
    Deno.writeTextFileSync(`${this.root}/linger`, String(seconds));
  }

  async gone(): Promise<void> {
    await eventually(async () => assert.equal((await this.print()).code, NOT_LOADED), { withinMs: 70_000 });
  }

  /** The stages of the last stop: which one ended it, and the seconds of each. The journal is its owner's alone. */
  async stages(): Promise<string> {
    const as = this.options.owner ?? "user";
    const { code, text } = await this.ground.run(["cat", `${this.made.dir}/lima-guard.jsonl`], { as });
    assert.equal(code, 0, text);
    const lines: Record<string, unknown>[] = text.trim().split("\n").map((line) => JSON.parse(line));
    const end = lines.findLast(({ event }) => event === "end");
    return `${end?.["stage"] ?? "no end"}: ${JSON.stringify(end?.["seconds"] ?? {})}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.asKeeper("launchctl", "bootout", this.target);
    await this.gone();
    const pid = await Deno.readTextFile(`${this.made.dir}/ha.pid`).then(Number, () => 0);
    if (pid > 1 && isAlive(pid)) await this.asKeeper("kill", "-9", String(pid));
    const files = [this.plist, `${this.plist}.before-lima-guard`, this.guardDir];
    await this.asKeeper("rm", "-rf", ...files);
    await this.ground.run(["rm", "-rf", this.root], { as: this.options.domain === "daemon" ? "root" : "user" });
  }
}

/** What the instances of this process have left in places that outlive them: files, and processes. */
export async function leftovers(ground: Ground): Promise<string[]> {
  const { home, agents, daemons, library } = ground;
  const names = [home, agents, daemons, library].flatMap((folder) =>
    [...Deno.readDirSync(folder)].map(({ name }) => `${folder}/${name}`)
  );
  const { text } = await ground.run(["ps", "-A", "-ww", "-o", "pid=,command="]);
  return [
    ...names.filter((path) => path.includes(NAME)),
    ...text.split("\n").filter((row) => Live.roots.some((root) => row.includes(`${root}/`))),
  ];
}

/** The labels that launchd keeps as disabled. */
export async function disabledLabels(ground: Ground, domain: Domain): Promise<string[]> {
  const { text } = await ground.run(["launchctl", "print-disabled", domainOf(ground, domain)]);
  return [...text.matchAll(/"([^"]+)" => (?:disabled|true)/g)].map(([, label = ""]) => label).sort();
}

const domainOf = ({ user }: Ground, domain: Domain) => domain === "agent" ? `gui/${user.uid}` : "system";

/** A run that crashed may have left jobs and files. */
export async function sweep(ground: Ground, domain: Domain): Promise<void> {
  const isAgent = domain === "agent";
  const folder = isAgent ? ground.agents : ground.daemons;
  const as = isAgent ? "user" : "root";
  for (const { name } of [...Deno.readDirSync(folder)]) {
    const [, label, rest] = new RegExp(`^(io\\.lima-vm\\.\\w+\\.${PREFIX}\\d+)\\.plist(.*)$`).exec(name) ?? [];
    if (label === undefined) continue;
    const target = `${domainOf(ground, domain)}/${label}`;
    if (rest === "") {
      await ground.run(["launchctl", "bootout", target], { as });
      await ground.run(["launchctl", "enable", target], { as });
      const isGone = async () => assert.equal((await ground.run(["launchctl", "print", target])).code, NOT_LOADED);
      await eventually(isGone, { withinMs: 70_000 });
    }
    const guardDir = `${isAgent ? ground.home : ground.library}/lima-guard-${label.slice(label.lastIndexOf(".") + 1)}`;
    await ground.run(["rm", "-rf", `${folder}/${name}`, guardDir], { as });
  }
}

export async function timed<T>(what: string, act: () => Promise<T>): Promise<T> {
  const began = performance.now();
  try {
    return await act();
  } finally {
    note(`${what}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
}
