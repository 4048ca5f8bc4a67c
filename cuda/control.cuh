// What an optimizer's steps leave on a device, so that no step waits for the host: fields of `control`, 64-bit each.
//   STEPS: updates done; keys the random numbers.   REFUSED: this step is none.   WORK: a table has gradients.
//   FIRST_REFUSED: 1 + the table that was first refused since the host last looked.   REFUSALS: steps refused since.
enum { STEPS = 0, REFUSED = 1, WORK = 2, FIRST_REFUSED = 3, REFUSALS = 4 };
