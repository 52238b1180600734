/** Where things are. */

import { fileURLToPath } from "node:url";

/** The repository. */
export const project = fileURLToPath(new URL("../../", import.meta.url)).replace(/\/$/, "");

/** A stand-in's file. */
export function standin(name: string): string {
  return `${project}/tests/standin/${name}`;
}
