/** What root may do about the instances of other users: say whose they are and what to type, and touch nothing. */

import assert from "node:assert/strict";
import { bystander, NO_ORDINARY_USER, ordinaryUser, runGuard, tempLimaHome } from "./helpers/mod.ts";

const user = ordinaryUser();
const title = "root's --all does not answer 0 while another user's host agent lives, and touches nothing";

Deno.test({
  name: user === null ? `${title} (${NO_ORDINARY_USER})` : title,
  ignore: user === null,
  fn: async () => {
    await using home = await tempLimaHome();
    Deno.chmodSync(home.root, 0o755);
    const dir = `${home.root}/a home nobody names/k3s`;
    const command = ["limactl", "hostagent", "--pidfile", `${dir}/ha.pid`, "--socket", `${dir}/ha.sock`, "k3s"];
    const options = { env: { LIMA_HOME: "" } };
    await using agent = await bystander(home, { command, uid: user!.uid, gid: user!.gid });
    for (const role of ["--stop"]) {
      const { status, json } = await runGuard(home, [role, "--all", "--json"], options);
      const [told] = json().instances;
      assert.deepEqual([status, told.name, told.status], [77, "k3s", 77], role);
      const typed = `sudo -H -u ${user!.name} lima-guard ${role} --lima-home '${home.root}/a home nobody names' k3s`;
      assert.equal(told.blockers[0].hint, typed);
    }
    agent.assertAlive();
  },
});
