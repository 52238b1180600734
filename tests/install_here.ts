/** install.ts on a pretended Mac, in a process of its own with a real user: `ROOT BINARY ARGUMENTS…`. */

import { installMain } from "../install.ts";
import { pretendedHost } from "./install_host.ts";

const [root = "", binary = "", ...args] = Deno.args;
const settings = JSON.parse(Deno.readTextFileSync(`${root}/state/settings.json`));
Deno.exit(await installMain(args, pretendedHost({ root, binary, home: Deno.env.get("HOME") }, settings)));
