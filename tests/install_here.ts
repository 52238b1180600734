/**
 * install.ts on a pretended Mac, in a process of its own with a real user: `ROOT BINARY ARGUMENTS…`. What makes it a Mac
 * are folders below ROOT, and the stand-ins for Apple's tools in ROOT/bin; owners, modes and users are the kernel's.
 */

import { type InstallHost, installMain, lockFile, realInstallHost } from "../install.ts";

const [root = "", binary = "", ...args] = Deno.args;
const settings = JSON.parse(Deno.readTextFileSync(`${root}/state/settings.json`));
const real = realInstallHost({ canAsk: false, isVerbose: false });
const isRoot = real.uid === 0;
const own = isRoot ? `${root}/system/var/db` : real.env("HOME") ?? "/nonexistent";
const system = `${root}/system`;

let effects = 0;
/** Before the n-th effect: stops forever (`freezeAt`), fails (`failAt`), or lets a command run (`hookAt`, `hook`). */
function before<A extends unknown[], R>(name: string, effect: (...args: A) => R): (...args: A) => R {
  return (...given: A): R => {
    effects++;
    if (settings.trace) {
      Deno.writeTextFileSync(`${root}/state/effects`, `${real.uid} ${name} ${String(given[0])}\n`, { append: true });
    }
    if (effects === settings.hookAt) {
      const hook = new Deno.Command("/bin/sh", { args: ["-c", settings.hook] }).outputSync();
      if (!hook.success) throw new Error(`the hook has failed: ${new TextDecoder().decode(hook.stderr)}`);
    }
    if (effects === settings.failAt && !/run|remove/.test(name)) {
      throw Object.assign(new Error("No space left on device (os error 28)"), { code: "ENOSPC" });
    }
    if (effects === settings.freezeAt) {
      Deno.stderr.writeSync(new TextEncoder().encode("frozen\n"));
      while (true) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    }
    return effect(...given);
  };
}

const host: InstallHost = {
  ...real,
  os: settings.os ?? "darwin",
  arch: settings.arch ?? "aarch64",
  canAsk: settings.canAsk ?? false,
  limits: { ...real.limits, ...settings.limits },
  folders: {
    daemons: `${system}/Library/LaunchDaemons`,
    guards: [`${system}/usr/local/libexec`, `${system}/Library/PrivilegedHelperTools`],
    boot: ["/"],
    own,
    log: isRoot ? `${system}/var/log` : `${real.env("HOME")}/Library/Logs`,
    programs: [`${root}/opt/homebrew/bin`, `${system}/usr/local/bin`],
  },
  self: settings.isBinary === false ? { folder: `${root}/src` } : { binary },
  magic: ["23212f75"],
  tool: (name) => name === "launchctl" && settings.launchctl || `${root}/bin/${name}`,
  boot: async () =>
    (await host.run([host.tool("sysctl"), "-n", "kern.bootsessionuuid"], { limitMs: 5000 })).stdout.trim(),
  stat: (path) => {
    const look = real.stat(path);
    const device = settings.devices?.find(({ prefix }: { prefix: string }) => path.startsWith(prefix));
    return typeof look === "object" && device ? { ...look, dev: device.dev } : look;
  },
  lock: () => lockFile(isRoot ? `${own}/lima-guard-install.lock` : `${own}/.lima-guard-install.lock`),
  alive: (pid) => settings.launchctl ? real.alive(pid) : typeof real.stat(`${root}/state/alive/${pid}`) === "object",
  confirm: () => {
    if (settings.whileAsked) new Deno.Command("/bin/sh", { args: ["-c", settings.whileAsked] }).outputSync();
    return Promise.resolve(settings.answer ?? true);
  },
  progress: () => ({ finish: () => {} }),
  compile: () => Promise.resolve({ argv: ["deno"], code: 1, stdout: "", stderr: "no network", late: false }),
  run: before("run", real.run),
  create: before("create", real.create),
  append: before("append", real.append),
  rename: before("rename", real.rename),
  link: before("link", real.link),
  remove: before("remove", real.remove),
  makeFolder: before("make", real.makeFolder),
  sync: before("sync", real.sync),
};
Deno.exit(await installMain(args, host));
