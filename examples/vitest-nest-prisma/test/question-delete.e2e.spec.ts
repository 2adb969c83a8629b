import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('with it go its answers and comments', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  await app.answer(made.id, id);
  await app.ask('POST', `/questions/${made.id}/comments`, { authorId: id, content: 'Hm.' });
  expect((await app.ask('DELETE', `/questions/${made.id}?authorId=${id}`)).status).toBe(204);
  expect(await Promise.all([app.prisma.answer.count(), app.prisma.comment.count(), app.prisma.user.count()])).toEqual([0, 0, 1]);
});
