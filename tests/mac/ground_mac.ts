/** A Mac as the ground of the stories: its launchd, its sudo, and the compiled lima-guard of this checkout. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";
import { copyCheckout } from "./builds.ts";
import {
  type Ground,
  type OtherBuild,
  type Person,
  type RunOptions,
  runToEnd,
  type Said,
  underUmask,
} from "./ground.ts";
import type { Domain } from "./launchd.ts";

const TARGET = Deno.build.target;
const GUARD = `${project}/dist/lima-guard-${TARGET}`;
/** An account for this alone: an instance is made in its name, and removed. */
const OTHER = "LIMA_GUARD_OTHER_USER";

/** Why it cannot be tried here; undefined where it can. */
export async function whyNotHere(domain: Domain): Promise<string | undefined> {
  if (Deno.build.os !== "darwin") return "needs a Mac";
  try {
    Deno.statSync(GUARD);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return "needs a compiled guard: deno task compile";
  }
  const isOk = async (...argv: string[]) => (await runToEnd(argv)).code === 0;
  if (domain === "daemon") return await isOk("sudo", "-n", "true") ? undefined : "needs sudo without a password";
  return await isOk("launchctl", "print", `gui/${Deno.uid()}`) ? undefined : "needs a login session";
}

export class RealMac implements Ground {
  readonly guard = GUARD;
  readonly daemons = "/Library/LaunchDaemons";
  readonly library = "/Library";
  readonly lingerS = 20;
  readonly rounds = 2;
  readonly #builds: string[] = [];
  private constructor(readonly user: Person, readonly home: string, readonly other: Ground["other"]) {}

  get agents(): string {
    return `${this.home}/Library/LaunchAgents`;
  }

  static async make(): Promise<RealMac> {
    // A ticket of sudo is good for 5 minutes; the stories of a login agent, which need none, take longer together.
    await runToEnd(["sudo", "-n", "true"]);
    const user = { name: (await runToEnd(["id", "-un"])).text.trim(), uid: Deno.uid() ?? 0 };
    const home = Deno.env.get("HOME") ?? "/";
    Deno.mkdirSync(`${home}/Library/LaunchAgents`, { recursive: true });
    const name = Deno.env.get(OTHER);
    if (!name) return new RealMac(user, home, { why: `${OTHER} names no account` });
    const { code, text } = await runToEnd(["id", "-u", name]);
    return new RealMac(user, home, code === 0 ? { name, uid: Number(text) } : { why: `${OTHER}: ${text.trim()}` });
  }

  makeFolder(): string {
    const path = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg" }));
    Deno.chmodSync(path, 0o755);
    return path;
  }

  run(argv: readonly string[], { as = "user", umask }: RunOptions = {}): Promise<Said> {
    const who = as === "other" && "name" in this.other ? ["-H", "-u", this.other.name] : [];
    const sudo = as === "user" ? [] : ["sudo", "-n", ...who];
    return runToEnd([...sudo, ...underUmask(argv, umask)], { cwd: "/" });
  }

  async build(which: OtherBuild): Promise<string> {
    // Not in /tmp: what any user could exchange is not installed.
    const folder = Deno.makeTempDirSync({ dir: this.home, prefix: "lima-guard-build-" });
    this.#builds.push(folder);
    copyCheckout(`${folder}/checkout`, which);
    const task = [Deno.execPath(), "run", "-A", "--no-lock", "tools/task.ts", "compile", TARGET, "--to", folder];
    const { code, text } = await runToEnd(task, { cwd: `${folder}/checkout` });
    assert.equal(code, 0, text);
    return `${folder}/lima-guard-${TARGET}`;
  }

  granted(): undefined {}

  async [Symbol.asyncDispose](): Promise<void> {
    for (const folder of this.#builds) await Deno.remove(folder, { recursive: true });
  }
}
