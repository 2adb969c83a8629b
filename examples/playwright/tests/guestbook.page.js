import { expect, test } from './fixtures.js';

for (const time of ['1st', '2nd', '3rd']) {
  test(`Ada writes into the book, the ${time} time`, async ({ page }) => {
    await page.goto('/');
    await expect(page.getByRole('listitem')).toHaveText(['The house: Welcome!']);
    await page.getByLabel('Name').fill('Ada');
    await page.getByLabel('Address').fill('ada@example.org');
    await page.getByLabel('Text').fill('<b>I was here</b>');
    await page.getByRole('button', { name: 'Write' }).click();
    await expect(page.getByRole('listitem')).toHaveText(['The house: Welcome!', 'Ada: <b>I was here</b>']);
  });
}
