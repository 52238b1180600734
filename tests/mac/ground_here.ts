/**
 * The stand-in for a Mac as the ground of the stories: the small launchd with real processes, the pretended Mac of the
 * installer's tests with three real users, and the real lima-guard, from source. Needs Linux and root.
 */

import assert from "node:assert/strict";
import { denoFlags } from "../helpers/guard.ts";
import { tempLimaHome } from "../helpers/home.ts";
import { project } from "../helpers/paths.ts";
import { ADA, FakeMac, ROOT, sharedFolder, WITHOUT_DAX, ZOE } from "../install_mac.ts";
import { realGuard } from "../install_real_guard.ts";
import { type Launchd, smallLaunchd } from "../launchd/launchd.ts";
import type { Home } from "../launchd/needs.ts";
import { copyCheckout } from "./builds.ts";
import { type Ground, type OtherBuild, type RunOptions, runToEnd, type Said, underUmask, type Who } from "./ground.ts";
import type { Domain } from "./launchd.ts";

/** ADA may use sudo; ZOE, who may not, is the other user. */
const PEOPLE = { user: ADA, root: ROOT, other: ZOE };
const LIMITS = {
  commandMs: 30_000,
  handshakeMs: 60_000,
  stopMs: 90_000,
  goneMs: 90_000,
  runningMs: 30_000,
  steadyMs: 1_000,
};

/** One file: a user who may not write the cache of another would have Deno read the source again at every start. */
async function bundle(from: string, to: string): Promise<string> {
  const args = ["bundle", "-q", ...WITHOUT_DAX, ...denoFlags(), "-o", to, from];
  const { code, text } = await runToEnd([Deno.execPath(), ...args], { cwd: from.slice(0, from.lastIndexOf("/")) });
  assert.equal(code, 0, text);
  return to;
}

let source: Promise<string> | undefined;

/** lima-guard in one file, made once for each process of tests. */
function guardSource(): Promise<string> {
  return source ??= bundle(`${project}/tools/compiled.ts`, `${sharedFolder()}/guard.js`);
}

export class HereGround implements Ground {
  readonly user = ADA;
  readonly other = ZOE;
  readonly lingerS = 6;
  readonly rounds = 1;
  readonly guard: string;
  readonly home: string;
  readonly agents: string;
  readonly daemons: string;
  readonly library: string;
  readonly #home: Home;
  readonly #launchd: Launchd;
  readonly #mac: FakeMac;
  #made = 0;

  private constructor(home: Home, launchd: Launchd, mac: FakeMac) {
    [this.#home, this.#launchd, this.#mac] = [home, launchd, mac];
    this.home = `${mac.root}/home/${ADA.name}`;
    this.guard = `${this.home}/dist/lima-guard`;
    this.agents = `${this.home}/Library/LaunchAgents`;
    this.daemons = mac.daemons;
    this.library = `${mac.system}/Library`;
  }

  static async make(): Promise<HereGround> {
    const home = await tempLimaHome();
    const launchd = smallLaunchd(home);
    const mac = FakeMac.make({ quick: false });
    Deno.copyFileSync(`${mac.state}/users`, `${launchd.bin}/state/users`);
    for (const { uid } of [ADA, ZOE]) Deno.writeTextFileSync(`${launchd.bin}/state/sessions/${uid}`, "");
    // It looks for its Mac from where it really is.
    Deno.symlinkSync(`${mac.root}/bin/sudo`, `${launchd.bin}/sudo`);
    mac.settings.launchctl = `${launchd.bin}/launchctl`;
    mac.settings.devices = [{ prefix: home.root, dev: Deno.lstatSync("/").dev }];
    mac.settings.limits = LIMITS;
    const source = await guardSource();
    mac.prepare();
    const ground = new HereGround(home, launchd, mac);
    ground.#put(ground.guard, realGuard(mac, { mark: home.mark, source }));
    return ground;
  }

  /** A build of this user's, as `deno task compile` makes it. */
  #put(path: string, text: string): string {
    this.#mac.folder(path.slice(0, path.lastIndexOf("/")), ADA);
    return this.#mac.write(path, text, ADA, 0o755);
  }

  makeFolder(): string {
    const path = `${this.#home.root}/${++this.#made}`;
    this.#mac.folder(path, ADA);
    return path;
  }

  run(argv: readonly string[], { as = "user", umask = "022" }: RunOptions = {}): Promise<Said> {
    const { uid, gid, groups } = PEOPLE[as];
    const ids = ["--reuid", String(uid), "--regid", String(gid), "--groups", groups.join(","), "--"];
    return runToEnd(["setpriv", ...ids, ...underUmask(argv, umask)], {
      env: { ...this.#home.mark, PATH: `${this.#launchd.bin}:/usr/bin:/bin:/usr/sbin:/sbin`, HOME: this.#homeOf(as) },
      clearEnv: true,
      cwd: "/",
    });
  }

  #homeOf(who: Who): string {
    return who === "root" ? `${this.#mac.system}/var/root` : `${this.#mac.root}/home/${PEOPLE[who].name}`;
  }

  async build(which: OtherBuild): Promise<string> {
    const mac = this.#mac;
    const folder = `${mac.root}/${which}`;
    copyCheckout(folder, which);
    await bundle(`${folder}/tests/install_here.ts`, `${folder}/install.js`);
    const source = await bundle(`${folder}/tools/compiled.ts`, `${folder}/guard.js`);
    const installer = `${mac.root}/lib/run-${which}`;
    const run = Deno.readTextFileSync(`${mac.root}/lib/run`).replace(/\S+\/install\.js/, `${folder}/install.js`);
    mac.write(installer, run, ROOT, 0o755);
    const program = realGuard(mac, { mark: this.#home.mark, source, installer });
    return this.#put(`${this.home}/build-${which}/lima-guard`, program);
  }

  granted(domain: Domain, seconds: number): number {
    return domain === "agent" ? Math.min(seconds, 60) : seconds;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#launchd[Symbol.asyncDispose]();
    await this.#mac[Symbol.asyncDispose]();
    await this.#home[Symbol.asyncDispose]();
  }
}
