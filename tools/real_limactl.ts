/** The machine's own limactl, where there is one that can be used. */

import { standin } from "../tests/helpers/paths.ts";

export interface RealLimactl {
  readonly path: string;
  /** What it says: `limactl version 2.2.0`. */
  readonly version: string;
}

/** The limactl on PATH, or why there is none for us. */
export function findLimactl(): RealLimactl | { why: string } {
  const path = findProgram("limactl");
  if (path === undefined) return { why: "no limactl on PATH" };
  if (Deno.uid() === 0) return { why: `${path} refuses to run as root` };
  const { success, stdout } = new Deno.Command(path, { args: ["--version"], stdin: "null", stderr: "null" })
    .outputSync();
  if (!success) return { why: `${path} --version fails` };
  return { path, version: new TextDecoder().decode(stdout).trim() };
}

/** The first file of this name on PATH that is not one of the tests' stand-ins. */
export function findProgram(name: string): string | undefined {
  return (Deno.env.get("PATH") ?? "").split(":").filter((dir) => dir.startsWith("/")).map((dir) => `${dir}/${name}`)
    .find((path) => isProgram(path) && Deno.realPathSync(path) !== standin(name));
}

function isProgram(path: string): boolean {
  try {
    const info = Deno.statSync(path);
    return info.isFile && ((info.mode ?? 0) & 0o111) !== 0;
  } catch {
    return false; // no such file, or not ours to look at
  }
}
