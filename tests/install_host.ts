/**
 * The host of install.ts on a pretended Mac. What makes it a Mac are folders below ROOT, and the stand-ins for Apple's
 * tools in ROOT/bin; owners, modes and users are the kernel's.
 */

import { type InstallHost, lockFile, realInstallHost } from "../install.ts";
import { type Ask, InstallTools, launchdAt } from "./install_tools.ts";
import type { MacSettings } from "./install_mac.ts";

/** `root`: the Mac's; `binary`: the guard that runs; `home`: of who runs it; `ask`: launchd, where it is in this process. */
interface Place {
  readonly root: string;
  readonly binary: string;
  readonly home: string | undefined;
  readonly ask?: Ask;
  /** What else is not the process's. */
  readonly own?: Partial<InstallHost>;
}

export function pretendedHost(
  place: Place,
  settings: MacSettings,
): InstallHost {
  const { root, binary, home, ask } = place;
  const real = realInstallHost({ canAsk: false, isVerbose: false });
  const isRoot = real.uid === 0;
  const system = `${root}/system`;
  const own = isRoot ? `${system}/var/db` : home ?? "/nonexistent";
  const before = effectsOf(root, settings);
  const tools = new InstallTools(root, ask ?? launchdAt(`${root}/lib/launchd.sock`));
  const run: InstallHost["run"] = async (argv, options) => {
    const answer = settings.quick ? await tools.run(argv, real.uid) : undefined;
    if (answer && options.words !== undefined) host.stderr(`$ ${options.words}\n`);
    return answer ?? await real.run(argv, options);
  };
  const host: InstallHost = {
    ...real,
    os: settings.os ?? "darwin",
    arch: settings.arch ?? "aarch64",
    canAsk: settings.canAsk ?? false,
    limits: { ...real.limits, ...settings.limits },
    folders: {
      daemons: `${system}/Library/LaunchDaemons`,
      guards: [`${system}/usr/local/libexec`, `${system}/Library/PrivilegedHelperTools`],
      // As on macOS there are two volumes: the Mac's may be in memory.
      boot: ["/", root],
      own,
      log: isRoot ? `${system}/var/log` : `${home}/Library/Logs`,
      programs: [`${root}/opt/homebrew/bin`, `${system}/usr/local/bin`],
    },
    self: settings.isBinary === false ? { folder: `${root}/src` } : { binary },
    magic: ["23212f75"],
    tool: (name) => name === "launchctl" && settings.launchctl || `${root}/bin/${name}`,
    // As on macOS a folder has another name there, to which no link leads.
    realPath: (path) => path.startsWith(`${root}/firmlinks/`) ? { ok: path } : real.realPath(path),
    stat: (path) => {
      const look = real.stat(path);
      const device = settings.devices?.find(({ prefix }) => path.startsWith(prefix));
      return typeof look === "object" && device ? { ...look, dev: device.dev } : look;
    },
    read: (path, limit) => {
      const line = `${real.uid} ${path}\n`;
      if (settings.trace) Deno.writeTextFileSync(`${root}/state/reads`, line, { append: true });
      return real.read(path, limit);
    },
    lock: (folder) => lockFile(`${folder}/${isRoot ? "" : "."}lima-guard-install.lock`),
    alive: (pid) => settings.launchctl ? real.alive(pid) : typeof real.stat(`${root}/state/alive/${pid}`) === "object",
    confirm: () => {
      if (settings.whileAsked) shell(settings.whileAsked);
      return Promise.resolve(settings.answer ?? true);
    },
    progress: () => ({ finish: () => {} }),
    compile: () => Promise.resolve({ argv: ["deno"], code: 1, stdout: "", stderr: "no network", late: false }),
    run: before("run", run),
    create: before("create", real.create),
    append: before("append", real.append),
    rename: before("rename", real.rename),
    link: before("link", real.link),
    remove: before("remove", real.remove),
    makeFolder: before("make", real.makeFolder),
    sync: before("sync", real.sync),
    ...place.own,
  };
  return host;
}

/** Before the n-th effect: stops forever (`freezeAt`), fails (`failAt`), or lets a command run (`hookAt`, `hook`). */
function effectsOf(root: string, settings: MacSettings) {
  let effects = 0;
  return <A extends unknown[], R>(name: string, effect: (...args: A) => R) => (...given: A): R => {
    effects++;
    if (settings.trace) {
      const line = `${Deno.uid()} ${name} ${String(given[0])}\n`;
      Deno.writeTextFileSync(`${root}/state/effects`, line, { append: true });
    }
    if (effects === settings.hookAt && settings.hook !== undefined) shell(settings.hook);
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

function shell(command: string): void {
  const { success, stderr } = new Deno.Command("/bin/sh", { args: ["-c", command] }).outputSync();
  if (!success) throw new Error(`the hook has failed: ${new TextDecoder().decode(stderr)}`);
}
