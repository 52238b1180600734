/** The jobs that write down how a shutdown treats them (probe.sh), and what their notes say. */

import type { Value } from "./launchd.ts";

/** Each is one way to ask launchd for time. */
export const PROBES: readonly { readonly name: string; readonly keys: { readonly [key: string]: Value } }[] = [
  { name: "plain", keys: {} },
  { name: "sixty", keys: { ExitTimeOut: 60 } },
  { name: "always", keys: { ExitTimeOut: 60, AlwaysSIGTERMOnShutdown: true } },
];

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
  const asked = run.find(({ who, what }) => who === "main" && what === "TERM")?.at;
  if (asked === undefined) return "no SIGTERM: killed, or the power went";
  const last = run.findLast(({ what }) => what === "alive")?.at ?? asked;
  const child = (name: string) => {
    const term = run.find(({ who, what }) => who === name && what === "TERM")?.at;
    return term === undefined
      ? `the child (${name}) got nothing`
      : `the child (${name}) SIGTERM after ${term - asked} s`;
  };
  const ssh = run.find(({ who }) => who === "ssh")?.what.trim();
  return `SIGTERM, then ${last - asked} s; ${child("group")}; ${child("apart")}; ssh: ${ssh || "no word"}`;
}
