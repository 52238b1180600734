/** The persons, the programs that they type, and the twin: an instance of the same name in another LIMA_HOME. */

import assert from "node:assert/strict";
import {
  type Agent,
  type Bystander,
  denoFlags,
  type Home,
  ordinaryUser,
  project,
  startAgent,
  startBystander,
  tempLimaHome,
} from "../helpers/mod.ts";
import { everything } from "../helpers/pre.ts";
import { denoDir } from "../launchd/jobs.ts";
import { Watched } from "./watched.ts";

/** Who owns the instances: an ordinary user, beside root where the tests run as root. */
export const owner = ordinaryUser();
/** For startAgent, startBystander and Deno.Command. */
export const asOwner = owner === null ? {} : { uid: owner.uid, gid: owner.gid };
/** Everything in a home, as it is now, becomes the owner's. */
export function give(home: Home): void {
  if (owner) home.giveTo(owner);
}
export const OWN_UID = owner?.uid ?? Deno.uid()!;

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
    // The packages of install.ts; another user cannot read ours.
    const copy = `cp -R '${denoDir()}/npm' '${this.folder}/deno/' && chmod -R a+rwX '${this.folder}/deno'`;
    new Deno.Command("sh", { args: ["-c", copy], stderr: "null" }).outputSync();
    this.watched = new Watched(this.folder);
    this.#programs();
    this.#before = this.#seen();
  }

  static async open(): Promise<Desk> {
    const twin = await tempLimaHome({ name: "twin" });
    for (const name of ["default", "k3s-2"]) twin.instance(name);
    const vm = twin.instance("k3s");
    give(twin);
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
exec '${Deno.execPath()}' run -A ${flags} '${project}/lima_guard.ts' "$@"\n`,
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
