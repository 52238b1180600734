/** An ordinary user beside root, and directories that cannot be written or are full. */

import assert from "node:assert/strict";
import type { Home } from "./home.ts";

const NAME = "lgtest";

export interface OrdinaryUser {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  /** Runs a command to its end as this user. */
  runAs(command: string, args: string[], env?: Record<string, string>): Promise<Deno.CommandOutput>;
}

/** Why there is no ordinary user to be had; for the name or the message of a test that is skipped. */
export const NO_ORDINARY_USER = "needs root, Linux and useradd, to run something as another user";

/** Where the tests run as root, a user without a login, made where it is missing; else null. */
export function ordinaryUser(name = NAME): OrdinaryUser | null {
  if (Deno.uid() !== 0 || Deno.build.os !== "linux") return null;
  if (id("-u", name) === undefined) {
    try {
      run("useradd", ["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]);
    } catch {
      // Made meanwhile by another test file that runs beside this one; or there is no useradd. The next lines tell.
    }
  }
  const [uid, gid] = [id("-u", name), id("-g", name)];
  if (uid === undefined || gid === undefined) return null;
  const runAs: OrdinaryUser["runAs"] = (command, args, env = {}) =>
    new Deno.Command(command, { args, env, clearEnv: true, cwd: "/", stdin: "null", uid, gid }).output();
  return { name, uid, gid, runAs };
}

/** Where the lima-guard of every user finds its packages. */
export function everyonesEnv(home: Home): { LIMA_HOME: string; DENO_DIR: string } {
  Deno.chmodSync(home.root, 0o755);
  const dir = `${home.root}/deno-dir`;
  Deno.mkdirSync(dir, { recursive: true });
  Deno.chmodSync(dir, 0o777);
  return { LIMA_HOME: "", DENO_DIR: dir };
}

function id(which: "-u" | "-g", name: string): number | undefined {
  const { success, stdout } = new Deno.Command("id", { args: [which, name], stderr: "null" }).outputSync();
  return success ? Number(new TextDecoder().decode(stdout)) : undefined;
}

function run(command: string, args: string[]): void {
  const { success, stderr } = new Deno.Command(command, { args }).outputSync();
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
}

/** Why a file system cannot be mounted here; undefined where it can. */
export function whyNoMount(): string | undefined {
  if (Deno.build.os !== "linux") return "needs Linux's tmpfs";
  if (Deno.uid() !== 0) return "needs root to mount a file system";
  canMount ??= tryToMount();
  return canMount || undefined;
}
let canMount: string | undefined;

function tryToMount(): string {
  const dir = Deno.makeTempDirSync();
  try {
    run("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", dir]);
    run("umount", [dir]);
    return "";
  } catch (error) {
    return `cannot mount a file system: ${(error as Error).message}`;
  } finally {
    Deno.removeSync(dir);
  }
}

export interface Mount extends Disposable {
  readonly dir: string;
  /** Writes until the disk is full; the file can be removed again. */
  fill(): string;
}

/** A file system of 64 KiB over an existing directory, whose files it hides. Only where whyNoMount() says nothing. */
export function tinyMount(dir: string): Mount {
  run("mount", ["-t", "tmpfs", "-o", "size=64k,mode=0755", "tmpfs", dir]);
  return {
    dir,
    fill() {
      const filler = `${dir}/filler`;
      const file = Deno.openSync(filler, { create: true, write: true });
      try {
        const page = new Uint8Array(1024);
        while (true) file.writeSync(page);
      } catch (error) {
        assert.equal((error as { code?: string }).code, "ENOSPC");
      } finally {
        file.close();
      }
      return filler;
    },
    // Lazily: a process of the test may still have its files open, and dies only after this.
    [Symbol.dispose]: () => run("umount", ["-l", dir]),
  };
}

/** Makes a directory read-only: for root by a mount, because no mode stops root. */
export function readOnlyDir(dir: string): Disposable {
  if (Deno.uid() === 0) {
    run("mount", ["--bind", dir, dir]);
    run("mount", ["-o", "remount,ro,bind", dir]);
    return { [Symbol.dispose]: () => run("umount", ["-l", dir]) };
  }
  const mode = Deno.statSync(dir).mode! & 0o7777;
  Deno.chmodSync(dir, 0o555);
  return { [Symbol.dispose]: () => Deno.chmodSync(dir, mode) };
}

/** Why readOnlyDir cannot be had here; undefined where it can. */
export function whyNoReadOnlyDir(): string | undefined {
  return Deno.uid() === 0 ? whyNoMount() : undefined;
}
