/** What the compiled lima-guard is made of: `tools/compile.ts` bundles it. */

import { runAsProgram } from "../lima_guard.ts";

runAsProgram();
