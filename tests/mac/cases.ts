/** What `tests/mac/record` has saved: a folder for each case. */

import { project } from "../helpers/paths.ts";

/** Where recordings are, each in a folder `macos-VERSION-ARCH`. */
export const RECORDED = `${project}/tests/standin/recorded`;
/** The one that is always there. No Mac has said it. */
export const BY_HAND = "macos-by-hand";

/** A recording by its name in RECORDED, or by its path. */
export function recordingOf(nameOrPath: string): string {
  return nameOrPath.startsWith("/") ? nameOrPath : `${RECORDED}/${nameOrPath}`;
}

export interface Case {
  readonly name: string;
  readonly argv: readonly string[];
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly late: boolean;
  readonly known: ReadonlyMap<string, string>;
  /** Why it was not run; undefined where it was. */
  readonly skipped: string | undefined;
}

function textOf(path: string): string | undefined {
  try {
    return new TextDecoder().decode(Deno.readFileSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** The cases in the folder of a recording. */
export function readRecording(folder: string): Case[] {
  const names = [...Deno.readDirSync(folder)].filter((entry) => entry.isDirectory).map(({ name }) => name).sort();
  return names.map((name) => {
    const file = (what: string) => textOf(`${folder}/${name}/${what}`);
    const pairs = (file("known") ?? "").split("\n").filter((line) => line !== "").map((line): [string, string] => {
      const at = line.indexOf("=");
      return [line.slice(0, at), line.slice(at + 1)];
    });
    return {
      name,
      argv: (file("argv") ?? "").split("\0").slice(0, -1),
      status: Number(file("status")?.trim() || NaN),
      stdout: file("stdout") ?? "",
      stderr: file("stderr") ?? "",
      late: file("late") !== undefined,
      known: new Map(pairs),
      skipped: file("skipped")?.trim(),
    };
  });
}
