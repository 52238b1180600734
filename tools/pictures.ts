/**
 * `deno task manual`: docs/pictures.md, the stages of a stop over its time limit, and what launchd runs before and after
 * `--install`. Drawn by mermaid, from the limits that a stop really has.
 * @module
 */

import { DEFAULT_BUDGET_S, stageLimits } from "../lima_guard.ts";

function stages(): string {
  const at = stageLimits(DEFAULT_BUDGET_S);
  const bar = (name: string, from: number, to: number) => `    ${name} :${Math.round(from)}, ${Math.round(to)}`;
  return [
    "gantt",
    "    dateFormat X",
    "    axisFormat %s s",
    "    section guest",
    bar(`no answer, until ${Math.round(at.guest)} s`, 0, at.guest),
    bar(`acknowledged, until ${Math.round(at.agent)} s`, 0, at.agent),
    "    section agent, driver",
    bar(`until ${Math.round(at.agent)} s`, at.guest, at.agent),
    "    section kill",
    bar(`until ${Math.round(at.kill)} s`, at.agent, at.kill),
    "    section clean up",
    bar(`until ${Math.round(at["clean up"])} s`, at.kill, at["clean up"]),
    "    section reserve",
    bar(`until ${DEFAULT_BUDGET_S} s`, at["clean up"], DEFAULT_BUDGET_S),
  ].join("\n");
}

const JOBS = `flowchart LR
    subgraph before [Before: ExitTimeOut 5 s]
        l1[launchd] --> a1["limactl start NAME --foreground"] --> v1[VM]
    end
    subgraph after [After --install: ExitTimeOut ${DEFAULT_BUDGET_S} s]
        l2[launchd] --> g["lima-guard --run NAME --"] --> a2["limactl start NAME --foreground"] --> v2[VM]
        g -. "open ssh session" .-> v2
    end`;

/** The files of this module, by their place in the repository. */
export function pictureFiles(): Record<string, string> {
  const picture = (title: string, source: string) => `## ${title}\n\n\`\`\`mermaid\n${source}\n\`\`\`\n`;
  const page = [
    "# Pictures\n",
    "Made by `deno task manual`. That launchd grants 5 s without `ExitTimeOut` is reported, and not yet verified on macOS.\n",
    picture("The stages of a stop", stages()),
    "Each stage ends as soon as its goal is reached; the time left goes to the next stage.\n",
    picture("What launchd runs", JOBS),
  ];
  return { "docs/pictures.md": page.join("\n") };
}
