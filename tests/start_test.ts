/** What a start from source costs beside its work: what Deno loads, and what it keeps for the next start. */

import assert from "node:assert/strict";
import { everyonesEnv, project, runGuard, tempLimaHome } from "./helpers/mod.ts";

Deno.test("a start does not load install.ts, nor any package of it", async () => {
  await using home = await tempLimaHome();
  // Who reads this never comes back.
  const { success } = new Deno.Command("mkfifo", { args: [`${home.root}/install.ts`] }).outputSync();
  assert.ok(success);
  Deno.copyFileSync(`${project}/lima_guard.ts`, `${home.root}/lima_guard.ts`);
  const { status, stderr } = await runGuard(home, ["--help"], { script: `${home.root}/lima_guard.ts` });
  assert.deepEqual([status, stderr], [0, ""]);
});

Deno.test("Deno keeps the compiled code of a start that has nothing to do", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const { DENO_DIR } = everyonesEnv(home);
  const decoder = new TextDecoder("latin1");
  const hasKept = () =>
    [...Deno.readDirSync(DENO_DIR)].filter(({ name }) => name.startsWith("v8_code_cache"))
      .some(({ name }) => decoder.decode(Deno.readFileSync(`${DENO_DIR}/${name}`)).includes("/lima_guard.ts"));
  // A thread of Deno's writes it, which the end of the process may overtake.
  for (let starts = 0; starts === 0 || !hasKept(); starts++) {
    assert.ok(starts < 20, "nothing was kept");
    const options = { script: `${project}/lima_guard.ts`, env: { DENO_DIR } };
    const { status, stderr } = await runGuard(home, ["--pre", "k3s"], options);
    assert.equal(status, 0, stderr);
  }
});
