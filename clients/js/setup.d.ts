/** A set-up file: importing it is all. */
export {};
