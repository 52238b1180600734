/** The commands that lima-guard prints: they name their instance in full, and do what the line beside them promises. */

import assert from "node:assert/strict";
import { runGuard } from "./helpers/guard.ts";
import { test } from "./helpers/pre.ts";

test("a name with a letter too few gets the nearest one of this LIMA_HOME, as a command", async ({ home }) => {
  home.instance("default");
  const { status, stdout } = await runGuard(home, ["--pre", "defalt"]);
  assert.equal(status, 66);
  const command = `lima-guard --pre --lima-home ${home.lima} default`;
  assert.ok(stdout.includes(`did you mean default? ${command};`), stdout);
  const again = await runGuard(home, command.split(" ").slice(1), { env: { LIMA_HOME: "" } });
  assert.match(again.stdout, /^default: clear/);
});
