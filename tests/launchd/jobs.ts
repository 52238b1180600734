/** The launchd jobs of the tests: Lima's own plist, wrapped as install.ts wraps it. */

import { denoFlags } from "../helpers/guard.ts";
import { project } from "../helpers/paths.ts";
import type { Launchd } from "./launchd.ts";
import { foreground } from "./run.ts";
import type { Instance } from "./needs.ts";
import { type Keys, writePlist } from "./plist.ts";

export function labelOf(instance: Instance): string {
  return `io.lima-vm.daemon.${instance.name}`;
}

/** Writes the plist of an instance and loads it. */
export function load(launchd: Launchd, instance: Instance, more: Partial<Keys> = {}): string {
  const { home } = instance;
  const label = labelOf(instance);
  const guard = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];
  const keys: Keys = {
    Label: label,
    ProgramArguments: [...guard, "--run", instance.name, "--", ...foreground(instance)],
    EnvironmentVariables: { ...environment(instance) },
    RunAtLoad: true,
    StandardOutPath: "launchd.stdout.log",
    StandardErrorPath: "launchd.stderr.log",
    WorkingDirectory: instance.dir,
    ...more,
  };
  const plist = `${home.root}/${label}.plist`;
  Deno.writeTextFileSync(plist, writePlist(keys as never));
  const code = launchd.bootstrap("system", plist);
  if (code !== 0) throw new Error(`bootstrap: ${code}`);
  return label;
}

/** Nothing but what Lima's plist has, and what this Deno needs to find its packages. */
export function environment(instance: Instance): Record<string, string> {
  const inherited = ["DENO_COVERAGE_DIR", "JSR_URL", "NPM_CONFIG_REGISTRY", "DENO_TLS_CA_STORE", "DENO_CERT"]
    .flatMap((name) => {
      const value = Deno.env.get(name);
      return value === undefined ? [] : [[name, value] as const];
    });
  return {
    LIMA_HOME: instance.home.lima,
    HOME: instance.home.user,
    DENO_DIR: denoDir(),
    DENO_NO_UPDATE_CHECK: "1",
    NO_COLOR: "1",
    ...Object.fromEntries(inherited),
  };
}

/** HOME is another one in tests, so the cache that Deno finds through HOME must be named. */
export function denoDir(): string {
  const { env } = Deno;
  if (env.get("DENO_DIR")) return env.get("DENO_DIR")!;
  if (env.get("XDG_CACHE_HOME")) return `${env.get("XDG_CACHE_HOME")}/deno`;
  return `${env.get("HOME")}/${Deno.build.os === "darwin" ? "Library/Caches" : ".cache"}/deno`;
}
