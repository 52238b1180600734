/** What the compiled lima-guard is made of: `tools/compile.ts` bundles it. */

import { runAsProgram } from "../lima_guard.ts";

/** lima_guard.ts hides this from Deno, which must find the packages of install.ts for a bundle. */
export const included = () => import("../install.ts");

runAsProgram();
