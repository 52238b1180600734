/** The jobs that write down how a shutdown treats them (probe.sh), and what their notes say. */

import { project } from "../helpers/paths.ts";
import { type Domain, line, plistText, type Said, say, type Value } from "./launchd.ts";

type Keys = { readonly [key: string]: Value };
const BOTH: readonly Domain[] = ["agent", "daemon"];

/** Each is one way to ask launchd for time. `root`: a daemon without UserName. */
export const PROBES: readonly { name: string; keys: Keys; domains: readonly Domain[]; root?: true }[] = [
  { name: "plain", keys: {}, domains: BOTH },
  { name: "sixty", keys: { ExitTimeOut: 60 }, domains: BOTH },
  { name: "two-minutes", keys: { ExitTimeOut: 120 }, domains: BOTH },
  { name: "five-minutes", keys: { ExitTimeOut: 300 }, domains: BOTH },
  { name: "always", keys: { ExitTimeOut: 60, AlwaysSIGTERMOnShutdown: true }, domains: BOTH },
  { name: "background", keys: { ExitTimeOut: 120, ProcessType: "Background" }, domains: ["daemon"] },
  { name: "root", keys: { ExitTimeOut: 60 }, domains: ["daemon"], root: true },
];

export interface Account {
  readonly uid: number;
  readonly user: string;
  readonly home: string;
}

export interface Armed {
  readonly domain: Domain;
  readonly name: string;
  readonly label: string;
  readonly target: string;
  readonly plist: string;
  readonly log: string;
  readonly text: string;
}

/** Where the notes are: on the boot volume, in a folder that this user and root may write. */
const logsOf = ({ home }: Account) => `${home}/Library/Logs/lima-guard-probe`;

/** All probes with their files. */
export function probesOf(account: Account): Armed[] {
  const logs = logsOf(account);
  return PROBES.flatMap(({ name, keys, domains, root }) =>
    domains.map((domain) => {
      const label = `org.lima-guard.probe.${domain}.${name}`;
      const target = `${domain === "agent" ? `gui/${account.uid}` : "system"}/${label}`;
      const folder = domain === "agent" ? `${account.home}/Library/LaunchAgents` : "/Library/LaunchDaemons";
      const text = plistText({
        Label: label,
        RunAtLoad: true,
        ...keys,
        ...domain === "daemon" && !root ? { UserName: account.user } : {},
        EnvironmentVariables: { PROBE_TARGET: target, PROBE_UID: String(account.uid) },
        ProgramArguments: ["/bin/sh", `${logs}/probe.sh`, logs, `${domain}.${name}`],
      });
      return {
        domain,
        name,
        label,
        target,
        plist: `${folder}/${label}.plist`,
        log: `${logs}/${domain}.${name}.log`,
        text,
      };
    })
  );
}

async function thisAccount(): Promise<Account> {
  const user = (await say(["id", "-un"])).text;
  return { uid: Deno.uid() ?? 0, user, home: Deno.env.get("HOME") ?? "/" };
}

async function remove(armed: Armed): Promise<void> {
  const sudo = armed.domain === "daemon" ? ["sudo", "-n"] : [];
  await say([...sudo, "launchctl", "bootout", armed.target]);
  await say([...sudo, "rm", "-f", armed.plist]);
}

/** Loads the probes; daemons only where sudo works. */
export async function arm(canSudo: boolean): Promise<string> {
  const account = await thisAccount();
  const logs = logsOf(account);
  await Deno.mkdir(logs, { recursive: true });
  await Deno.mkdir(`${account.home}/Library/LaunchAgents`, { recursive: true });
  await Deno.copyFile(`${project}/tests/mac/probe.sh`, `${logs}/probe.sh`);
  const found: string[] = [];
  for (const armed of probesOf(account)) {
    if (armed.domain === "daemon" && !canSudo) continue;
    await remove(armed);
    await Deno.remove(armed.log).catch(() => say(["sudo", "-n", "rm", "-f", armed.log]));
    const [file, sudo] = [`${logs}/plist`, armed.domain === "daemon" ? ["sudo", "-n"] : []];
    await Deno.writeTextFile(file, armed.text);
    const owner = armed.domain === "daemon" ? ["-o", "root", "-g", "wheel"] : [];
    await say([...sudo, "install", "-m", "644", ...owner, file, armed.plist]);
    const { code } = await say([
      ...sudo,
      "launchctl",
      "bootstrap",
      armed.target.replace(`/${armed.label}`, ""),
      armed.plist,
    ]);
    found.push(`${armed.domain} ${armed.name}: bootstrap ${code}`);
  }
  return `armed, reboot and ask again: ${found.join(", ")}${canSudo ? "" : "; daemons: sudo -n does not work here"}`;
}

/** Takes them away; the notes stay. */
export async function disarm(canSudo: boolean): Promise<string> {
  for (const armed of probesOf(await thisAccount())) {
    if (armed.domain === "agent" || canSudo) await remove(armed);
  }
  return canSudo ? "taken away" : "the agents are taken away; daemons: sudo -n does not work here";
}

/** What launchd and macOS have written down about the shutdown. Each has a limit: the notes are worth more. */
async function readSystem(): Promise<string[]> {
  const predicate = 'process == "launchd" && eventMessage CONTAINS "org.lima-guard.probe"';
  const logged = await say(
    ["/usr/bin/log", "show", "--last", "1h", "--style", "compact", "--predicate", predicate],
    {},
    30_000,
  );
  // launchd's own file has more than the log; only root may read it on some versions.
  const own = await say(["/usr/bin/grep", "-hE", "org.lima-guard.probe.*(SIG|signal|exited)", LAUNCHD_LOG]);
  const stalls = await say(["/bin/sh", "-c", 'ls -t "$0" | grep -m 3 ^shutdown_stall', REPORTS]);
  return [
    `log: ${ofLog(logged)}`,
    `${LAUNCHD_LOG}: ${ofLog(own)}`,
    `shutdown_stall: ${line(stalls.text) || "none"}`,
  ];
}

const LAUNCHD_LOG = "/private/var/log/com.apple.xpc.launchd/launchd.log";
const REPORTS = "/Library/Logs/DiagnosticReports";

/** How many lines there are, those of a kill, and the last. */
export function ofLog({ code, text }: Said): string {
  const rows = text.split("\n").filter((row) => row.includes("org.lima-guard.probe"));
  if (rows.length === 0) return code === 0 ? "no line" : `no line, status ${code}: ${line(text)}`;
  const killed = rows.filter((row) => row.includes("SIGKILL"));
  const last = killed.at(-1) ?? rows.at(-1) ?? "";
  return `${rows.length} lines, ${killed.length} with SIGKILL; ${line(last)}`;
}

/** What the notes say; undefined where none was ever armed. */
export async function readArmed(): Promise<string | undefined> {
  const found: string[] = [];
  for (const { domain, name, log } of probesOf(await thisAccount())) {
    const text = await Deno.readTextFile(log).catch(() => undefined);
    if (text !== undefined) found.push(`${domain} ${name}: ${readProbe(text)}`);
  }
  return found.length > 0 ? [...found, ...await readSystem()].join("\n  ") : undefined;
}

/** What the last run in a log lived through, in words. */
export function readProbe(log: string): string {
  const lines = log.split("\n").flatMap((text) => {
    const [, at, who, what = ""] = /^(\d+) (\w+) ?([^]*)$/.exec(text) ?? [];
    return at === undefined ? [] : [{ at: Number(at), who: who ?? "", what }];
  });
  const starts = lines.flatMap(({ who, what }, i) => who === "main" && what === "start" ? [i] : []);
  // The run after the reboot is at work now; the one before it has seen the shutdown.
  const from = starts.at(-2);
  if (from === undefined) return "no reboot since it was armed";
  const run = lines.slice(from, starts.at(-1));
  const boots = lines.flatMap(({ who, what }) => who === "main" && what.startsWith("boot ") ? [what] : []);
  const [before, now] = boots.slice(-2);
  const how = before !== undefined && before === now && before !== "boot unknown"
    ? "no boot, a logout or a reload: "
    : "";
  const asked = run.find(({ who, what }) => who === "main" && what === "TERM")?.at;
  if (asked === undefined) return `${how}no SIGTERM: killed, or the power went`;
  const last = run.findLast(({ what }) => what === "alive")?.at ?? asked;
  const child = (name: string) => {
    const term = run.find(({ who, what }) => who === name && what === "TERM")?.at;
    return term === undefined
      ? `the child (${name}) got nothing`
      : `the child (${name}) SIGTERM after ${term - asked} s`;
  };
  const ssh = run.find(({ who }) => who === "ssh")?.what.trim();
  const more = ["directory", "session", "job"].flatMap((name) => {
    const what = run.find(({ who }) => who === name)?.what.trim();
    return what ? [`; ${name}: ${what}`] : [];
  });
  const who = run.find(({ who, what }) => who === "main" && what.startsWith("who "))?.what;
  if (who !== undefined) more.unshift(`; ${who.includes("console") ? "a user" : "no user"} at the screen`);
  return `${how}SIGTERM, then ${last - asked} s; ${child("group")}; ${child("apart")}; ssh: ${ssh || "no word"}${
    more.join("")
  }`;
}
