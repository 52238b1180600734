// Stand-in for @std/log/logger, for messages that are strings.
import type { BaseHandler } from "./base_handler.ts";
import { type LevelName, LogLevels } from "./levels.ts";

export type LogRecord = Readonly<
  Record<"msg" | "levelName" | "loggerName", string> & { level: number; datetime: Date }
>;

export class Logger {
  handlers: BaseHandler[];
  constructor(readonly loggerName: string, public levelName: LevelName, options: { handlers?: BaseHandler[] } = {}) {
    this.handlers = options.handlers ?? [];
  }
  debug = (msg: string): string => this.#log("DEBUG", msg);
  info = (msg: string): string => this.#log("INFO", msg);
  warn = (msg: string): string => this.#log("WARN", msg);
  error = (msg: string): string => this.#log("ERROR", msg);
  critical = (msg: string): string => this.#log("CRITICAL", msg);

  #log(levelName: LevelName, msg: string): string {
    const level = LogLevels[levelName];
    if (level < LogLevels[this.levelName]) return msg;
    const record = { msg, level, levelName, loggerName: this.loggerName, datetime: new Date() };
    this.handlers.forEach((handler) => handler.handle(record));
    return msg;
  }
}
