/** probe.sh and its reader, on any machine: only the shutdown is launchd's. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";
import { eventually, killChild } from "../helpers/processes.ts";
import { plistText, textOf } from "./launchd.ts";
import { ofLog, probesOf, readProbe } from "./probe.ts";

const RUN = "100 main start\n";
for (
  const [log, words] of [
    ["", "no reboot since it was armed"],
    [RUN, "no reboot since it was armed"],
    [RUN + RUN, "no SIGTERM: killed, or the power went"],
    [
      `${RUN}200 main TERM\n200 main alive\n201 ssh No user exists for uid 501\r \n202 apart TERM\n205 main alive\n${RUN}`,
      "SIGTERM, then 5 s; the child (group) got nothing; the child (apart) SIGTERM after 2 s; " +
      "ssh: No user exists for uid 501",
    ],
    [
      `${RUN}200 main TERM\n201 directory status 1 after 1 s\n203 session status 113 after 0 s\n203 main alive\n${RUN}`,
      "SIGTERM, then 3 s; the child (group) got nothing; the child (apart) got nothing; ssh: no word; " +
      "directory: status 1 after 1 s; session: status 113 after 0 s",
    ],
    [
      `${RUN}100 main boot A\n200 main TERM\n200 main who ci console Nov 27 \n203 main alive\n${RUN}300 main boot B\n`,
      "SIGTERM, then 3 s; the child (group) got nothing; the child (apart) got nothing; ssh: no word; " +
      "a user at the screen",
    ],
    [
      `${RUN}100 main boot A\n200 main TERM\n200 main who \n${RUN}300 main boot A\n`,
      "no boot, a logout or a reload: SIGTERM, then 0 s; the child (group) got nothing; " +
      "the child (apart) got nothing; ssh: no word; no user at the screen",
    ],
    [
      `${RUN}100 main boot unknown\n${RUN}300 main boot unknown\n`,
      "no SIGTERM: killed, or the power went",
    ],
    [
      `${RUN}1 main TERM\n${RUN}200 main TERM\ncut of\n${RUN}`,
      "SIGTERM, then 0 s; the child (group) got nothing; the child (apart) got nothing; ssh: no word",
    ],
  ] as const
) {
  Deno.test(`readProbe() says: ${words}`, () => assert.equal(readProbe(log), words));
}

Deno.test("the probes are armed as agents and as daemons with UserName; one as root", () => {
  const all = probesOf({ uid: 501, user: "ci", home: "/Users/ci" });
  const names = (domain: string) => all.filter((one) => one.domain === domain).map(({ name }) => name);
  assert.deepEqual(names("agent"), ["plain", "sixty", "two-minutes", "five-minutes", "always"]);
  assert.deepEqual(names("daemon"), ["plain", "sixty", "two-minutes", "five-minutes", "always", "background", "root"]);
  for (const { domain, name, plist, target, label, text } of all) {
    assert.equal(text.includes("<key>UserName</key><string>ci</string>"), domain === "daemon" && name !== "root");
    assert.equal(target, `${domain === "agent" ? "gui/501" : "system"}/${label}`);
    assert.ok(plist.startsWith(domain === "agent" ? "/Users/ci/Library/LaunchAgents/" : "/Library/LaunchDaemons/"));
  }
  assert.equal(new Set(all.map(({ log }) => log)).size, all.length);
});

Deno.test("ofLog() counts launchd's lines about the probes, and shows the kill", () => {
  const of = (name: string, words: string) => `t launchd[1:2] (system/org.lima-guard.probe.daemon.${name}) ${words}`;
  const text = ["Timestamp  Process", of("plain", "sent SIGKILL"), of("sixty", "exited")].join("\n");
  assert.equal(ofLog({ code: 0, text }), `2 lines, 1 with SIGKILL; ${of("plain", "sent SIGKILL")}`);
  assert.equal(ofLog({ code: 0, text: "Timestamp" }), "no line");
  assert.equal(ofLog({ code: 1, text: "denied\n" }), "no line, status 1: denied");
});

Deno.test("plistText() escapes what it writes", () => {
  const text = plistText({ a: ["<&>", 1], b: { c: true } });
  assert.ok(text.includes("<key>a</key><array><string>&lt;&amp;></string><integer>1</integer></array>"), text);
  assert.ok(text.includes("<key>b</key><dict><key>c</key><true/></dict>"), text);
});

Deno.test("probe.sh notes its start, the SIGTERM, and the seconds after it; its children note their own", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  const args = [`${project}/tests/mac/probe.sh`, dir, "x"];
  const child = new Deno.Command("sh", { args, stdin: "null", stdout: "null", stderr: "null" }).spawn();
  const children = async () => {
    const { stdout } = await new Deno.Command("ps", { args: ["-eo", "pid=,args="] }).output();
    const rows = new TextDecoder().decode(stdout).split("\n").filter((row) => / (group|apart)$/.test(row));
    return rows.filter((row) => row.includes(`probe.sh ${dir} x `)).map((row) => Number.parseInt(row));
  };
  try {
    await textOf(`${dir}/x.log`, /( start[^]*){3}/);
    const pids = await eventually(async () => {
      const found = await children();
      assert.equal(found.length, 2);
      return found;
    });
    child.kill("SIGTERM");
    const log = await textOf(`${dir}/x.log`, /(main alive[^]*){2}/);
    assert.match(log, /^\d+ main start\n[^]*^\d+ main TERM$/m);
    assert.match(await textOf(`${dir}/x.log`, / ssh \S/), / ssh .*(refused|not found|No user|Could not)/i);
    for (const pid of pids) Deno.kill(pid, "SIGTERM");
    await textOf(`${dir}/x.log`, / (group|apart) TERM[^]* (group|apart) TERM/);
    await textOf(`${dir}/x.log`, / directory status \d+ after \d+ s$/m);
    await textOf(`${dir}/x.log`, / session status \d+ after \d+ s$/m);
  } finally {
    killChild(child);
    for (const pid of await children()) Deno.kill(pid, "SIGKILL");
    await child.status;
    await Deno.remove(dir, { recursive: true });
  }
});
