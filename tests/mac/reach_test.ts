/** The ways of root to a user's session, with the stand-in for launchd: each is a real change of user. */

import assert from "node:assert/strict";
import { WHY_NO_MAC } from "../install_mac.ts";
import { HereGround } from "./ground_here.ts";
import { plistText } from "./launchd.ts";
import { askReach, waysTo } from "./reach.ts";

const ignore = WHY_NO_MAC !== undefined;

Deno.test({
  name: `each way to become the user is another one, and reaches the job${ignore ? `: ${WHY_NO_MAC}` : ""}`,
  ignore,
  async fn() {
    await using ground = await HereGround.make();
    const { user } = ground;
    const account = { uid: user.uid, groups: (await ground.run(["id", "-G"])).text.trim() };
    const asRoot = (...argv: string[]) => ground.run(argv, { as: "root" });
    const ids: Record<string, string> = {};
    for (const [name, way] of Object.entries(waysTo(account))) {
      const { text } = await asRoot(...way, "/bin/sh", "-c", "id -u; id -G");
      ids[name] = text.trim().split("\n").join(": ");
    }
    const { uid, groups } = account;
    const [gid] = groups.split(" ");
    assert.notEqual(groups, gid, "the account needs two groups");
    assert.deepEqual(ids, {
      "root itself": "0: 0",
      "asuser": "0: 0",
      "asuser, sudo -u": `${uid}: ${groups}`,
      "sudo -u": `${uid}: ${groups}`,
      "sudo -P -u": `${uid}: ${gid} 0`,
      "uid with its groups": `${uid}: ${groups}`,
      "uid with one group": `${uid}: ${gid}`,
    });

    const label = "org.lima-guard.question.reach";
    const [target, plist] = [`gui/${uid}/${label}`, `${ground.makeFolder()}/${label}.plist`];
    const keys = { Label: label, RunAtLoad: true, ProgramArguments: ["/bin/sleep", "1000"] };
    await ground.run(["/bin/sh", "-c", 'printf %s "$1" >"$2"', "sh", plistText(keys), plist]);
    assert.equal((await ground.run(["launchctl", "bootstrap", `gui/${uid}`, plist])).code, 0);
    const answer = await askReach(asRoot, { account, target, plist });
    const rows = Object.keys(waysTo(account)).map((name) => `${name}: print 0, bootout 0, bootstrap 0`);
    assert.equal(answer, rows.join("; "));
    assert.equal((await ground.run(["launchctl", "bootout", target])).code, 0);
  },
});
