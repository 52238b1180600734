/** What a test leaves behind is found by command line and working directory: a Mac may show no environments. */

import assert from "node:assert/strict";
import { findIn, findWithoutEnvironments, tempLimaHome } from "../helpers/home.ts";
import { eventually, killChild, startBystander, zombie } from "../helpers/processes.ts";

Deno.test("leftovers are found without environments: a bystander, a zombie's parent, a host agent and its child", async () => {
  await using home = await tempLimaHome();
  const d = home.instance("d", { conf: { vmtype: "vz", grandchild: 1 } });
  await using seen = await startBystander(home);
  await using dead = await zombie(home);
  const how = { env: home.env, cwd: "/", stdin: "null", stdout: "null", stderr: "null" } as const;
  const agent = new Deno.Command(home.limactl, { args: ["start", "d", "--foreground"], ...how }).spawn();
  try {
    await eventually(() => assert.equal(d.pid("ha.pid"), agent.pid));
    await eventually(() => {
      const found = findWithoutEnvironments(home.root);
      const pids = found.map(({ pid }) => pid);
      assert.ok(pids.includes(seen.pid), "the bystander");
      assert.ok(pids.includes(agent.pid), "the host agent");
      assert.ok(found.some(({ command }) => command.includes("[mux]")), "its child");
      assert.ok(found.some(({ command }) => /perl -e /.test(command)), `the parent of ${dead.pid}`);
    });
  } finally {
    killChild(agent);
    await agent.status;
  }
});

Deno.test("findIn() takes the words of a Mac's ps and lsof", () => {
  const ps = "    1 Ss   /sbin/launchd\n  502 S    /usr/libexec/sirittsd\n  503 Z    <defunct>\n" +
    "  504 S    /bin/sh /private/tmp/lg-1/x\n  505 S    /bin/sh /private/tmp/lg-12/x\n";
  const lsof =
    "p1\nfcwd\nn/\np502\nfcwd\nn/private/tmp/lg-1\np503\nfcwd\nn/private/tmp/lg-1\np505\nfcwd\nn/private/tmp/lg-12\n";
  assert.deepEqual(findIn("/private/tmp/lg-1", ps, lsof).map(({ pid }) => pid), [502, 504]);
});
