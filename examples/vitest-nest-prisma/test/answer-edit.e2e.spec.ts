import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('an answer is edited', async () => {
  const { id } = await app.student();
  const given = await app.answer((await app.question(id)).id, id);
  expect((await app.ask('PUT', `/answers/${given.id}`, { content: 'Rather so.' })).body.content).toBe('Rather so.');
});
