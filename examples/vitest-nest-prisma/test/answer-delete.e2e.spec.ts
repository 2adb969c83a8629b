import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('the question stays', async () => {
  const { id } = await app.student();
  const given = await app.answer((await app.question(id)).id, id);
  expect((await app.ask('DELETE', `/answers/${given.id}`)).status).toBe(204);
  expect(await Promise.all([app.prisma.answer.count(), app.prisma.question.count()])).toEqual([0, 1]);
});
