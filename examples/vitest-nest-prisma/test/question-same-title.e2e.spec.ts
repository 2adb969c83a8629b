import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('two questions of one title are refused, and the first stays', async () => {
  const { id } = await app.student();
  await app.question(id);
  expect((await app.ask('POST', '/questions', { authorId: id, title: 'How do I test?', content: '?' })).status).toBe(500);
  expect(await app.prisma.question.count()).toBe(1);
});
