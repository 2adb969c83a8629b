import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('its author edits it', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  const edited = await app.ask('PUT', `/questions/${made.id}`, { authorId: id, title: 'How do I test it?', content: 'New.' });
  expect(edited.body).toMatchObject({ slug: 'how-do-i-test-it', content: 'New.' });
});

test('nobody else does', async () => {
  const { id } = await app.student();
  const other = await app.student('eve@example.test');
  const made = await app.question(id);
  expect((await app.ask('PUT', `/questions/${made.id}`, { authorId: other.id, title: 'Mine', content: '' })).status).toBe(403);
  expect(await app.prisma.question.findMany()).toMatchObject([{ slug: 'how-do-i-test' }]);
});
